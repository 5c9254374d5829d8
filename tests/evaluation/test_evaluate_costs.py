"""Latency, usage, cost, statuses and reasons of each stage."""

import numpy as np
import pytest

from milvus_pipeline import Fallback, Hit, Pipeline, Query, SearchResult, StageReport, evaluate
from milvus_pipeline.evaluation.figures import Tally
from milvus_pipeline.evaluation.measures import Measures
from milvus_pipeline.evaluation.tree import build_tree
from support.fake_stages.basic import Faulty
from support.fake_stages.evaluation import TableRerank, TableSearch

pytest.importorskip("ir_measures")
pytest.importorskip("scipy")
pytest.importorskip("statsmodels")

TABLE = {"one": ["a", "b", "c"], "two": ["b", "x", "y", "a"]}
QRELS = {"1": {"a": 1, "c": 2}, "2": {"a": 1, "z": 1}, "3": {"a": 1}}
QUERIES = [Query("one", id="1"), Query("two", id="2")]


def evaluated(*stages, queries=QUERIES, **options):
    pipeline = Pipeline([TableSearch(table=TABLE), *stages], name="fake")
    return evaluate(pipeline, queries, QRELS, warm_up=False, **options)


def reported(seconds, batch_size=1, **fields):
    return StageReport("table_search", "table_search", seconds, 0, 1, batch_size=batch_size, **fields)


def tallied(*results):
    """The figures of a stage after which these are the results."""
    (node,) = build_tree({"fake": Pipeline([TableSearch(table=TABLE)])})
    tally = Tally(node, Measures(["RR"]), {str(result.query.id): {"a": 1} for result in results})
    tally.add([SearchResult(result.query) for result in results], results)
    return tally.figures({})


def test_latencies_are_of_one_query_each():
    """Mean and percentiles are numpy's, of each query's share of its batch."""
    seconds = [0.1, 0.2, 0.4, 0.8, 1.6]
    figures = tallied(
        *(
            SearchResult(Query("q", id=str(number)), [Hit("a", "", 1.0)], reports=[reported(4 * took, 4)])
            for number, took in enumerate(seconds)
        )
    )
    assert figures.latency == figures.elapsed
    assert figures.latency.mean == pytest.approx(np.mean(seconds))
    found = (figures.latency.p50, figures.latency.p95, figures.latency.p99)
    assert found == pytest.approx(np.percentile(seconds, [50, 95, 99]))


def test_the_time_of_a_fallback_is_its_stages():
    """A stage that failed after one second, and was stood in for in two, took three."""
    spare = StageReport("spare", "spare", 2.0, 0, 1, fallback_for="table_search")
    figures = tallied(SearchResult(Query("q", id="1"), reports=[reported(1.0, status="skipped"), spare]))
    assert figures.latency.mean == pytest.approx(3.0)
    assert figures.statuses == {"skipped": 1}


def test_time_adds_up_along_the_stages():
    """What has elapsed behind a stage is what was before it and the stage's own, query by query."""
    search, rerank = evaluated(TableRerank()).systems[0].stages
    assert search.elapsed == search.latency
    assert rerank.elapsed.mean == pytest.approx(search.latency.mean + rerank.latency.mean)
    assert rerank.elapsed.p50 >= max(search.latency.p50, rerank.latency.p50)


def test_queries_that_failed_before_take_no_time_in_a_stage():
    """They would make it look fast."""
    found = evaluated(TableRerank(), queries=[*QUERIES, Query("unknown", id="3")]).systems[0]
    assert [sum(stage.statuses.values()) for stage in found.stages] == [3, 2]
    assert found.stages[0].statuses == {"ok": 2, "failed": 1}
    assert found.stages[0].reasons == {"query": 1}
    assert found.statuses == {"ok": 2, "failed": 1}


def test_usage_is_summed_and_priced():
    """By the provider's words; what is not priced costs nothing as long as something of the stage is."""
    rerank = TableRerank(name="cohere", usage={"requests": 2, "search_units": 3})
    found = evaluated(rerank, prices={"cohere.search_units": 0.002}).systems[0]
    assert found.stages[1].usage == {"requests": 4, "search_units": 6}
    assert found.stages[1].cost == pytest.approx(0.012)
    assert found.stages[0].cost == 0.0
    assert found.cost == pytest.approx(0.012)


def test_without_prices_there_is_no_cost():
    """None is not nothing."""
    found = evaluated(TableRerank(usage={"requests": 1}))
    assert found.systems[0].cost is found.systems[0].stages[1].cost is None
    assert found.warnings == ("1 of the judged queries were not given; their judgements were left out",)


def test_prices_that_match_nothing_and_usage_without_a_price_are_reported():
    """A slip in a price's name would else be a bill of 0."""
    found = evaluated(TableRerank(name="cohere", usage={"search_units": 3}), prices={"cohere.searchunits": 0.002})
    assert found.systems[0].cost is None
    assert "the price of cohere.searchunits matches no usage; the usage was cohere.search_units" in found.warnings
    assert any(warning.startswith("cohere has usage without a price") for warning in found.warnings)


def test_what_a_fallback_used_has_its_name():
    """Words of two providers are not added up, and each has its own price."""
    spare = TableRerank(name="voyage", usage={"tokens": 5})
    rerank = TableRerank(name="cohere", usage={"tokens": 1}, fails=True, on_error=Fallback(spare))
    found = evaluated(rerank, prices={"cohere.tokens": 1.0, "voyage.tokens": 10.0}).systems[0]
    assert found.stages[1].usage == {"tokens": 2, "voyage.tokens": 10}
    assert found.cost == pytest.approx(102.0)
    assert found.stages[1].statuses == {"skipped": 2}
    assert found.stages[1].reasons == {"unavailable": 2}
    assert found.statuses == {"degraded": 2}


def test_scores_of_a_cache_are_reported():
    """The latency is that of the cache then."""
    found = evaluated(TableRerank(cached=3))
    assert found.systems[0].stages[1].cached == 6
    assert any("6 scores of table_rerank came from its cache" in warning for warning in found.warnings)


def test_a_skipped_stage_is_reported():
    """The measures are those of the ranking that the reader gets, which is the one before it."""
    found = evaluated(TableRerank(fails=True, on_error="skip"))
    search, rerank = found.systems[0].stages
    assert rerank.measures == search.measures
    assert rerank.statuses == {"skipped": 2}
    assert any("a stage did not do all of its work for 2 of 2 queries" in warning for warning in found.warnings)
    assert found.comparisons == ()


def test_a_system_whose_every_query_fails_is_reported_with_the_first_error():
    """It is measured, with 0, as its errors are what the reader needs to see; no text of a document is in them."""
    found = evaluated(Faulty(how="echo"))
    assert found.systems[0].measures == {"nDCG@10": 0.0, "R@100": 0.0}
    (warning,) = [warning for warning in found.warnings if "all of 2 queries failed" in warning]
    assert "fake: stages[1] (faulty): ValueError" in warning
    assert "the text of" not in warning
