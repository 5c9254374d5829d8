"""What queries cost: in reports, in results, in sums."""

import asyncio
import tracemalloc

import pytest

from milvus_pipeline import Pipeline, Query, SearchResult, StageReport, total_planned, total_usage
from support.fake_stages.basic import ListedSearch, WordOverlap
from support.fake_stages.paid import Paid


@pytest.fixture(autouse=True)
def key(monkeypatch):
    """Set the service's key."""
    monkeypatch.setenv("PAID_API_KEY", "a-key")


def report(stage, **details):
    return StageReport(stage, stage, 0.0, 3, 3, details=details)


def test_a_report_and_a_result_tell_the_usage():
    """A report has usage by word, a result by stage and word, without stages that cost nothing."""
    result = Pipeline([ListedSearch(), Paid(), WordOverlap()]).run("red")
    assert result.report("paid").usage == {"requests": 2, "documents": 4, "units": 2.0}
    assert result.report("listed_search").usage == {}
    assert result.usage == {"paid": {"requests": 2, "documents": 4, "units": 2.0}}
    assert result.to_dict()["reports"][1]["details"]["usage"]["requests"] == 2


def test_only_finite_numbers_are_usage():
    """A null, NaN, string or truth value of a service is not added; a plugin may note anything as usage."""
    for noted in (None, "much", 3, ["requests"]):
        result = SearchResult(Query("q"), reports=[report("odd", usage=noted, planned=noted)])
        assert (result.reports[0].usage, result.reports[0].planned, result.usage) == ({}, {}, {})
        assert total_usage([result]) == total_planned([result]) == {}
    odd = report("odd", usage={"a": 1, "b": None, "c": float("nan"), "d": "7", "e": True, "f": 0.5})
    assert odd.usage == {"a": 1, "f": 0.5}


def test_the_sum_is_by_stage_and_word():
    """Later words are added; whole numbers become ints, fractions stay."""
    results = [
        SearchResult(Query("a"), reports=[report("one", usage={"requests": 1, "units": 1.0})]),
        SearchResult(Query("b"), reports=[report("one", usage={"requests": 2, "retries": 1, "units": 2.0})]),
        SearchResult(Query("c"), reports=[report("search"), report("two", usage={"dollars": 0.25})]),
    ]
    total = total_usage(result for result in results)
    assert total == {"one": {"requests": 3, "units": 3, "retries": 1}, "two": {"dollars": 0.25}}
    assert type(total["one"]["units"]) is int
    assert total_usage([]) == {}


def test_the_sum_keeps_no_result():
    """Results are not kept while they are added up."""

    def results():
        for number in range(200):
            yield SearchResult(Query("x" * 500_000), reports=[report("one", usage={"requests": number})])

    tracemalloc.start()
    try:
        assert total_usage(results()) == {"one": {"requests": 199 * 100}}
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_query_that_failed_cost_too():
    """A failed query has its usage."""
    pipeline = Pipeline([ListedSearch(), Paid(refused="plum")])
    good, failed = pipeline.run_batch(["red", "plum"], return_errors=True)
    assert (good.status, failed.status) == ("ok", "failed")
    assert failed.usage == good.usage
    assert total_usage([good, failed]) == {"paid": {"requests": 4, "documents": 8, "units": 4}}


@pytest.mark.parametrize(("on_error", "status"), [("raise", "failed"), ("skip", "degraded")])
def test_a_batch_that_broke_off_cost_too(on_error, status):
    """Usage noted before the exception is in the reports of the batch."""
    pipeline = Pipeline([ListedSearch(), Paid(crash=True, on_error=on_error)])
    results = pipeline.run_batch(["red", "plum"], return_errors=True)
    assert [result.status for result in results] == [status] * 2
    assert total_usage(results)["paid"]["requests"] == 4


def test_a_query_that_was_given_up_cost_too():
    """Usage noted before a stage was abandoned at its deadline is reported."""
    pipeline = Pipeline([ListedSearch(), Paid(hang=30.0, timeout=0.05)])
    (result,) = asyncio.run(pipeline.arun_batch(["red"], return_errors=True))
    assert result.status == "failed"
    assert result.usage["paid"]["requests"] == 2
    pipeline.close()
