"""Measures and ceilings after each stage, by hand and as ir-measures gives them for a run; what is refused."""

import json
import math

import pytest

from milvus_pipeline import ConfigError, Pipeline, Query, SearchResult, evaluate
from milvus_pipeline.errors import InputError
from milvus_pipeline.files.results import TrecRun
from support.fake_stages.basic import FirstOnly
from support.fake_stages.evaluation import Preparing, TableRerank, TableSearch, calls, setups

ir_measures = pytest.importorskip("ir_measures")
pytest.importorskip("scipy")
pytest.importorskip("statsmodels")

TABLE = {"one": ["a", "b", "c"], "two": ["b", "x", "y", "a"], "none": []}
QRELS = {"1": {"a": 1, "c": 2}, "2": {"a": 1, "z": 1}, "3": {"a": 1}}
QUERIES = [Query("one", id="1"), Query("two", id="2")]
LOG3 = math.log2(3)
MEASURES = (
    "nDCG@10",
    "nDCG@3",
    "AP@100",
    "RR",
    "P@5",
    "R@100",
    "R(rel=2)@50",
    "Judged@10",
    "Bpref",
    "Success@1",
    "NumRet",
    "nDCG(judged_only=True)@10",
)


def pipeline(*stages, name="fake"):
    return Pipeline([TableSearch(table=TABLE), *stages], name=name)


def test_each_stage_is_measured_as_it_leaves_the_ranking():
    """Retrieval, a reranker and a cut, worked out by hand for two queries."""
    found = evaluate(
        pipeline(TableRerank(first=("c", "a")), FirstOnly()), QUERIES, QRELS, measures=["RR", "nDCG@2", "R@3"]
    )
    search, rerank, cut = found.systems[0].stages
    assert search.measures == pytest.approx({"RR": (1 + 1 / 4) / 2, "nDCG@2": 1 / (2 + 1 / LOG3) / 2, "R@3": 1 / 2})
    second = 1 / (1 + 1 / LOG3)  # a first, z missed
    assert rerank.measures == pytest.approx({"RR": 1.0, "nDCG@2": (1 + second) / 2, "R@3": (1 + 1 / 2) / 2})
    first = 2 / (2 + 1 / LOG3)
    assert cut.measures == pytest.approx({"RR": 1.0, "nDCG@2": (first + second) / 2, "R@3": 1 / 2})
    assert found.systems[0].measures == cut.measures
    assert found.systems[0].per_query["nDCG@2"] == pytest.approx({"1": first, "2": second})
    assert [stage.hits for stage in found.systems[0].stages] == [3.5, 3.5, 1.0]


def test_ceilings_are_what_a_perfect_reranker_could_reach():
    """The same hits in the best order: what was not found stays lost, and what was cut is lost, too."""
    found = evaluate(pipeline(FirstOnly()), QUERIES, QRELS, measures=["nDCG@2", "R@3"])
    search, cut = found.systems[0].stages
    assert search.ceilings == pytest.approx({"nDCG@2": (1 + 1 / (1 + 1 / LOG3)) / 2, "R@3": (1 + 1 / 2) / 2})
    assert cut.ceilings == cut.measures == pytest.approx({"nDCG@2": (1 / (2 + 1 / LOG3)) / 2, "R@3": 1 / 4})


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_the_figures_are_those_of_ir_measures_for_the_written_run(batch_size, tmp_path):
    """With ties, failed queries and one without hits, in batches of any size, over more queries than are together."""
    table = {f"text {n}": [f"d{(n * 7 + k) % 31}" for k in range(n % 9)] for n in range(40)}
    queries = [Query(f"text {n}", id=str(n)) for n in range(45)]  # the last five fail
    qrels = {str(n): {f"d{(n * 5 + k) % 31}": k % 4 for k in range(12)} for n in range(45)}
    rerank = TableRerank(first=tuple(f"d{n}" for n in range(10, 0, -1)), top_k=6)
    systems = {
        "search": Pipeline([TableSearch(table=table)]),
        "rerank": Pipeline([TableSearch(table=table), rerank]),
    }
    runs = {name: TrecRun(name) for name in systems}
    files = {name: tmp_path / name for name in systems}

    def write(system: str, results: list[SearchResult]) -> None:
        with files[system].open("a") as file:
            file.writelines(runs[system].text(result) for result in results)

    options = {"batch_size": batch_size, "on_results": write, "correction": "none"}
    found = evaluate(systems, queries, qrels, measures=MEASURES, **options)
    measures = {name: ir_measures.parse_measure(name) for name in MEASURES}
    for system in found.systems:
        direct = ir_measures.calc(
            list(measures.values()), qrels, list(ir_measures.read_trec_run(str(files[system.name])))
        )
        for name, measure in measures.items():
            assert system.measures[name] == pytest.approx(direct.aggregated[measure], abs=1e-12)
            expected = {one.query_id: one.value for one in direct.per_query if one.measure == measure}
            assert system.per_query[name] == pytest.approx(expected, abs=1e-12)
            assert system.stages[-1].ceilings[name] >= system.measures[name] - 1e-12
    search, rerank = found.systems
    assert rerank.stages[0].measures == search.measures
    assert search.statuses == {"ok": 40, "failed": 5}
    assert any("5 of 45 queries failed (query: 5)" in warning for warning in found.warnings)


def test_measures_of_other_programs_are_taken():
    """The nDCG with exponential gains comes from gdeval, which ir-measures brings, and which gives five digits."""
    name = "nDCG(dcg='exp-log2')@10"
    found = evaluate(pipeline(), QUERIES[:1], QRELS, measures=[name])
    assert found.systems[0].measures[name] == pytest.approx((1 + 3 / 2) / (3 + 1 / LOG3), abs=1e-5)


def test_before_the_first_hits_there_is_nothing_to_measure():
    """A stage that only prepares the query has neither measures nor ceilings, and is not compared with."""
    found = evaluate(Pipeline([Preparing(), TableSearch(table=TABLE)]), QUERIES, QRELS)
    assert found.systems[0].stages[0].measures == found.systems[0].stages[0].ceilings == {}
    assert set(found.systems[0].stages[1].measures) == {"nDCG@10", "R@100"}
    assert found.comparisons == ()


def test_queries_without_judgements_are_left_out_with_a_warning():
    """They are not run, and judgements of queries that were not given are ignored, with warnings."""
    queries = [*QUERIES, Query("two", id="unjudged"), Query("two"), "two"]
    found = evaluate(pipeline(), queries, QRELS, warm_up=False)
    assert calls["table_search"] == 2
    assert (found.queries, found.judged) == (5, 2)
    assert "3 of 5 queries have no judgements, and were left out" in found.warnings
    assert "1 of the judged queries were not given; their judgements were left out" in found.warnings


def test_a_line_that_could_not_be_read_counts_as_a_failed_query():
    """A result that has failed before it was asked has found nothing."""
    bad = SearchResult(Query("", id="2"), status="failed", error=InputError("queries.jsonl:2: is not valid JSON"))
    found = evaluate(pipeline(), [QUERIES[0], bad], QRELS, measures=["RR"])
    assert found.systems[0].measures["RR"] == pytest.approx(1 / 2)
    assert found.systems[0].statuses == {"ok": 1, "failed": 1}
    assert any("queries.jsonl:2" in warning for warning in found.warnings)


def test_a_query_with_nothing_relevant_counts_as_ir_measures_counts_it():
    """It is 0 in nearly every measure, with a warning."""
    found = evaluate(pipeline(), QUERIES, {**QRELS, "2": {"a": 0}}, measures=["RR"])
    assert found.systems[0].measures["RR"] == pytest.approx(1 / 2)
    assert "1 of 2 queries have no document judged relevant; most measures are 0 for them" in found.warnings


def test_all_of_it_is_strict_json():
    """NaN and infinities are null."""
    found = evaluate(pipeline(), QUERIES, QRELS, variants={"fake": {"table_search.x": math.inf}})
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["systems"][0]["variant"] == {"table_search.x": None}
    assert data["systems"][0]["config"]["stages"][0]["type"] == "table_search"
    assert data["systems"][0]["stages"][0]["latency"].keys() == {"mean", "p50", "p95", "p99"}
    assert data["versions"]["ir-measures"] == ir_measures.__version__
    assert data["created"].endswith("+00:00")


def test_a_measure_that_wants_other_ids_is_reported_before_anything_runs():
    """Measures of gdeval need numeric query ids, and fail before anything runs."""
    with pytest.raises(ConfigError, match=r"ERR@10 cannot be computed here: .*numeric query ids"):
        evaluate(pipeline(), [Query("one", id="q1")], {"q1": {"a": 1}}, measures=["ERR@10"])
    assert not setups


@pytest.mark.parametrize("name", ["Foo@10", "nDCG@", "nDCG(dcg='foo')@10", "nDCG(foo=1)@10", ""])
def test_a_measure_that_cannot_be_computed_is_reported_before_anything_runs(name):
    """The message names it, and shows how measures are written."""
    with pytest.raises(ConfigError, match=r"measures: .*examples: nDCG@10") as caught:
        evaluate(pipeline(), QUERIES, QRELS, measures=["RR", name])
    assert repr(name) in str(caught.value)
    assert not setups


def test_no_measure_at_all_is_reported():
    """There has to be one to rank systems by."""
    with pytest.raises(ConfigError, match="measures: name at least one measure"):
        evaluate(pipeline(), QUERIES, QRELS, measures=[])


def test_a_measure_that_fails_on_a_ranking_costs_no_other():
    """Accuracy divides by zero if only relevant documents were found; a warning says so, and others are computed."""
    qrels = {"1": {"a": 1, "b": 1, "c": 1}, "2": {"x": 1}}
    found = evaluate(pipeline(), QUERIES, qrels, measures=["RR", "Accuracy"])
    assert found.systems[0].measures == pytest.approx({"RR": 3 / 4, "Accuracy": 2 / 3})
    assert any("Accuracy has no value for some rankings: ZeroDivisionError" in warning for warning in found.warnings)


def test_a_measure_is_named_as_it_was_asked_for_and_counts_once():
    """Names that mean the same measure are one."""
    found = evaluate(pipeline(), QUERIES, QRELS, measures=["NDCG@10", "nDCG@10", "RR"])
    assert found.measures == ("NDCG@10", "RR")
    assert list(found.systems[0].measures) == ["NDCG@10", "RR"]


@pytest.mark.parametrize(
    ("queries", "qrels", "message"),
    [
        (
            [Query("one", id="q1"), Query("two", id="q2")],
            QRELS,
            "begin with 'q1', 'q2', and the judged ids begin with '1', '2', '3'",
        ),
        ([Query("one")], QRELS, "none of the 1 queries has judgements: they have no ids"),
        ([], QRELS, "there are no queries"),
        (QUERIES, {}, "there are no judgements"),
        (QUERIES, {"1": {}}, "there are no judgements"),
        ([*QUERIES, QUERIES[0]], QRELS, "two queries have the id '1'"),
    ],
)
def test_queries_and_judgements_that_do_not_fit_are_reported_before_anything_runs(queries, qrels, message):
    """The ids of both sides are shown, as most often one side's are written in another way."""
    with pytest.raises(InputError, match=message):
        evaluate(pipeline(), queries, qrels)
    assert not setups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: must be a whole number of at least 1, got 0"),
        ({"movements": True}, "movements: must be a whole number of at least 0, got True"),
        ({"test": "wilcoxon"}, "test: must be one of t, permutation, got 'wilcoxon'"),
        ({"correction": "sidak"}, "correction: must be one of holm, bonferroni, fdr_bh, none, got 'sidak'"),
        ({"variants": {"other": {}}}, "variants: 'other' is not a system"),
        ({"prices": {"cohere.search_units": -1}}, "prices: cohere.search_units: must be a number of at least 0"),
        ({"prices": {"cohere.search_units": math.nan}}, "prices: cohere.search_units: must be a number"),
        ({"prices": {"search_units": 1}}, "prices: search_units: must name a stage and a word of its usage"),
    ],
)
def test_a_wrong_option_is_reported_before_anything_runs(options, message):
    """Each says what it may be."""
    with pytest.raises(ConfigError, match=message):
        evaluate(pipeline(), QUERIES, QRELS, **options)
    assert not setups


def test_systems_have_names_of_their_own():
    """Pipelines with equal names are refused unless a mapping names them."""
    with pytest.raises(ConfigError, match="two pipelines have the name 'fake'"):
        evaluate([pipeline(), pipeline(FirstOnly())], QUERIES, QRELS)
    with pytest.raises(ConfigError, match="give at least one pipeline"):
        evaluate([], QUERIES, QRELS)
    found = evaluate({"a": pipeline(), "b": pipeline(FirstOnly())}, QUERIES, QRELS, variants={"b": {"cut": 1}})
    assert [(system.name, system.variant) for system in found.systems] == [("a", {}), ("b", {"cut": 1})]
    assert found.title == "a and 1 more"


def test_a_pipeline_without_hits_is_reported():
    """If no stage retrieves, nothing can be measured."""
    with pytest.raises(ConfigError, match="no stage gives hits"):
        evaluate(Pipeline([Preparing()]), QUERIES, QRELS)
