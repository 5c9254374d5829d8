"""The pipeline: composition, the loop over stages, and the effect of a failure on a result."""

import asyncio

import pytest

from milvus_pipeline import (
    ConfigError,
    DeadlineError,
    Pipeline,
    Query,
    QueryError,
    ServiceError,
    StageError,
    StageReport,
)
from milvus_pipeline.plugin import Reranker
from support.fake_stages.basic import Faulty, FirstOnly, GivenScores, ListedSearch, Slow, WordOverlap


def words(**fields):
    return Pipeline([ListedSearch(), WordOverlap(**fields)], name="words")


def test_stages_run_in_their_order_and_report():
    """A query comes back with the reranked hits and one report a stage."""
    result = words(top_k=2).run("red plum")
    assert [hit.id for hit in result] == [1, 0]
    assert [hit.scores for hit in result] == [
        {"listed_search": 0.9, "word_overlap": 2.0},
        {"listed_search": 1.0, "word_overlap": 1.0},
    ]
    assert [(r.stage, r.hits_in, r.hits_out, r.status) for r in result.reports] == [
        ("listed_search", 0, 4, "ok"),
        ("word_overlap", 4, 2, "ok"),
    ]
    assert all(report.seconds >= 0 for report in result.reports)
    assert result.status == "ok"


def test_sync_async_and_batch_agree():
    """The four ways of running give equal results."""
    queries = ["red plum", Query("sky", id="s"), "nothing of it"]
    pipeline = words()
    singly = [pipeline.run(query) for query in queries]

    async def run():
        return [await pipeline.arun(query) for query in queries], await pipeline.arun_batch(queries)

    assert pipeline.run_batch(queries) == singly
    assert asyncio.run(run()) == (singly, singly)


def test_the_order_of_hits_without_a_score_or_text():
    """Ties keep their earlier order; hits without a score come last in theirs, and those without a text warn."""
    assert [hit.id for hit in words().run("nothing of it")] == [0, 1, 2, 3]
    result = Pipeline([ListedSearch(), GivenScores(scores=(None, -5.0, None, 2.0))]).run("x")
    assert [hit.id for hit in result] == [3, 1, 0, 2]
    assert "given_scores" not in result.hits[2].scores
    assert [hit.ranks["given_scores"] for hit in result] == [1, 2, 3, 4]
    result = Pipeline([ListedSearch(documents=(None, "red", "red plum")), WordOverlap()]).run("red plum")
    assert [hit.id for hit in result] == [2, 1, 0]
    assert result.warnings == ["word_overlap: 1 of 3 hits have no text; ranked last, without a score"]


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ((1.0, 2.0), "expected 4 scores, got 2"),
        ((1.0, 2.0, float("nan"), 3.0), "the score of text 2 is nan, not a finite number"),
        ((1.0, 2.0, float("inf"), 3.0), "the score of text 2 is inf, not a finite number"),
    ],
)
def test_bad_scores_of_a_plugin_are_refused(scores, says):
    """A reranker that returns invalid scores fails instead of spoiling the order."""
    with pytest.raises(StageError, match=rf"pipeline: stages\[1\] \(given_scores\): {says}"):
        Pipeline([ListedSearch(), GivenScores(scores=scores)]).run("x")


# -- composition -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([], "stages: a pipeline needs at least one stage"),
        ([ListedSearch(), WordOverlap], "stages[1]: must be a Stage, got ModelMetaclass"),
        (
            [WordOverlap()],
            "stages[0]: word_overlap needs 'hits', which no stage before it gives; "
            "put a retrieval stage such as milvus_search first",
        ),
        (
            [WordOverlap(), ListedSearch()],
            "stages[0]: word_overlap needs 'hits', which stages[1] (listed_search) gives only later; "
            "move that stage before this one",
        ),
    ],
    ids=["none", "class", "no_retrieval", "order"],
)
def test_stages_that_do_not_fit_are_refused(stages, says):
    """The chain is checked before anything runs, and the message says what to change."""
    with pytest.raises(ConfigError) as caught:
        Pipeline(stages)
    assert str(caught.value) == says


def test_two_stages_of_one_name_are_refused():
    """Scores are kept by stage name, so a second reranker of a type needs another name."""
    with pytest.raises(ConfigError, match=r"stages\[2\].name: 'word_overlap' is also the name of stages\[1\]"):
        Pipeline([ListedSearch(), WordOverlap(), WordOverlap()])
    result = Pipeline([ListedSearch(), WordOverlap(), WordOverlap(name="again", weight=2)]).run("red")
    assert result.hits[0].scores == {"listed_search": 1.0, "word_overlap": 1.0, "again": 2.0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"timeout": 0}, "timeout: must be a number of seconds above 0, got 0"),
        ({"timeout": "2"}, "timeout: must be a number of seconds above 0, got '2'"),
        ({"timeout": True}, "timeout: must be a number of seconds above 0, got True"),
        ({"timeout": float("nan")}, "timeout: must be a number of seconds above 0, got nan"),
        ({"timeout": float("inf")}, "timeout: must be a number of seconds above 0, got inf"),
        ({"name": ""}, "name: must be a string that is not empty, got ''"),
        ({"collection": {"feilds": []}}, "collection: feilds: unknown key; did you mean 'fields'?"),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    """The pipeline's own arguments are checked like a file's."""
    with pytest.raises(ConfigError) as caught:
        Pipeline([ListedSearch()], **arguments)
    assert says in str(caught.value)


# -- queries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("  \n", "query 1: is empty; give it a text or a vector"),
        (Query("", id="b"), "query 'b': is empty; give it a text or a vector"),
        (7, "query 1: must be a string or a Query, got int"),
        (Query(7), "query 1: `text` must be a string, got int"),
        (Query("a", filter_params=None), "query 1: `filter_params` must be a mapping, got NoneType"),
        (Query("a", id="x", params=[]), "query 'x': `params` must be a mapping, got list"),
    ],
)
def test_a_wrong_query_fails_alone(query, says):
    """A blank query and one of another type fail alone, and the error has the position or id."""
    with pytest.raises(QueryError, match=says):
        words().run_batch(["red", query])
    good, bad, other = words().run_batch(["red", query, "sky"], return_errors=True)
    assert [len(good.hits), good.status] == [len(other.hits), other.status] == [4, "ok"]
    assert (bad.status, bad.hits, bool(bad)) == ("failed", [], False)
    (reason,) = bad.reasons
    assert (reason.stage, reason.code, reason.text) == ("", "query", str(bad.error))


def test_wrong_arguments_of_a_call_are_refused():
    """A string is not taken for a list of queries, or for seconds; an empty batch is no error."""
    with pytest.raises(QueryError, match="for a single one call run"):
        words().run_batch("red")
    with pytest.raises(QueryError, match="timeout: must be a number of seconds, got '3'"):
        words().run("red", timeout="3")
    assert words().run_batch([]) == asyncio.run(words().arun_batch([])) == []


# -- failure -----------------------------------------------------------------------------------------------------


def test_a_failed_stage_says_where_and_keeps_its_cause():
    """The error names pipeline and stage, and has the original exception as its cause."""
    pipeline = Pipeline([ListedSearch(), Faulty()], name="papers")
    with pytest.raises(StageError) as caught:
        pipeline.run_batch(["a", "b"])
    assert str(caught.value) == ("papers: stages[1] (faulty): ZeroDivisionError: division by zero")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


class Refused(Reranker):
    """A service that refuses every request."""

    type = "refused"

    def score(self, query, texts):
        """No score."""
        raise ServiceError("too many requests", status=429, code="rate", request_id="r-1", retry_after=7.0)


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_report_keeps_the_error_itself(on_error):
    """The report has the error with the service's reply; it is not compared, printed or written, unlike its message."""
    pipeline = Pipeline([ListedSearch(), Refused(on_error=on_error)])
    (result,) = pipeline.run_batch(["red"], return_errors=True)
    report = result.report("refused")
    assert isinstance(report.error, StageError)
    assert str(report.error) == report.reason
    cause = report.error.__cause__
    assert isinstance(cause, ServiceError)
    assert (cause.status, cause.code, cause.request_id, cause.retry_after) == (429, "rate", "r-1", 7.0)
    assert result.error is (report.error if on_error == "raise" else None)
    assert result.report("listed_search").error is None
    assert StageReport(**{**report.to_dict(), "warnings": (), "error": None}) == report
    assert "error" not in report.to_dict()
    assert "error=" not in repr(report)


def test_a_skipped_stage_shows_in_the_result():
    """With on_error: skip the hits stay as they were, and the result is degraded."""
    pipeline = Pipeline([ListedSearch(), Faulty(on_error="skip"), WordOverlap()])
    result = pipeline.run("red plum")
    assert result.status == "degraded"
    assert result.degraded
    assert [hit.id for hit in result] == [1, 0, 2, 3]
    assert result.report("faulty").status == "skipped"
    assert "ZeroDivisionError" in (result.report("faulty").reason or "")
    assert asyncio.run(pipeline.arun("red plum")) == result


def test_a_stage_can_fail_on_single_queries():
    """The failed query keeps its place in the batch, the others are processed."""
    pipeline = Pipeline([ListedSearch(), Faulty(how="word", word="sky")], name="papers")
    first, second = pipeline.run_batch(["red", "sky"], return_errors=True)
    assert len(first.hits) == 1
    assert str(second.error) == "papers: stages[1] (faulty): this word cannot be looked up"
    assert isinstance(second.error, QueryError)
    assert second.report("faulty").status == "failed"


def test_no_document_gets_into_a_message():
    """Of a foreign exception that repeats a document, the message has only the class; the cause has the rest."""
    pipeline = Pipeline([ListedSearch(), Faulty(how="echo")])
    with pytest.raises(StageError) as caught:
        pipeline.run("red")
    assert str(caught.value) == (
        "pipeline: stages[1] (faulty): ValueError, whose message repeats a document and is left "
        "out; see the cause of the error"
    )
    assert "green pear" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Faulty(how="return", returned="text"), "the stage must return a list of SearchResult"),
        (Faulty(how="return", returned=["a"]), "the stage must return a list of SearchResult"),
        (Faulty(how="return", returned=None), "the stage must return a list of SearchResult"),
        (Faulty(how="short"), "2 results went in, but 1 came out"),
    ],
    ids=["text", "texts", "none", "short"],
)
def test_a_wrong_return_value_is_an_error_of_the_stage(stage, says):
    """A stage must return as many results as it was given."""
    with pytest.raises(StageError, match=rf"stages\[1\] \(faulty\): {says}"):
        Pipeline([ListedSearch(), stage]).run_batch(["a", "b"])


# -- time --------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_the_query_before_the_next_stage():
    """One deadline covers all stages, and a call may set another; a stage after it does not start."""
    pipeline = Pipeline([ListedSearch(), Slow(seconds=0.05), WordOverlap()], timeout=0.02)
    with pytest.raises(DeadlineError, match=r"stages\[2\] \(word_overlap\): timed out after 0.02 s"):
        pipeline.run("red")
    assert pipeline.run("red", timeout=30).status == "ok"


def test_a_query_of_a_batch_that_was_late_says_so_by_its_error():
    """The error is a DeadlineError and a TimeoutError even if only some queries of a batch were late."""
    pipeline = Pipeline([ListedSearch(), Faulty(how="word", word="unknown")])
    with pytest.raises(DeadlineError, match=r"stages\[1\] \(faulty\): timed out"):
        pipeline.run("late")
    late, right = pipeline.run_batch(["late", "red"], return_errors=True)
    assert isinstance(late.error, TimeoutError)
    assert right.status == "ok"


def test_an_async_call_ends_at_its_deadline():
    """The event loop does not wait for a stage past the deadline."""
    pipeline = Pipeline([ListedSearch(), Slow(seconds=0.2)], timeout=0.05)

    async def run():
        with pytest.raises(DeadlineError, match=r"stages\[\d\] \(\w+\): timed out after 0.05 s"):
            await pipeline.arun("red")

    asyncio.run(run())


@pytest.mark.parametrize("way", ["sync", "async"])
def test_what_takes_no_time_is_done_after_the_deadline(way):
    """A reranker after the deadline is skipped, as it may be; cutting the hits takes no time and is done."""
    stages = [ListedSearch(), Slow(seconds=0.4, on_error="skip"), WordOverlap(on_error="skip"), FirstOnly()]
    pipeline = Pipeline(stages, timeout=0.2)
    result = pipeline.run("red") if way == "sync" else asyncio.run(pipeline.arun("red"))
    assert result.status == "degraded"
    assert [hit.id for hit in result] == [0]
    slow = "ok" if way == "sync" else "skipped"  # an event loop abandons it
    assert [report.status for report in result.reports] == ["ok", slow, "skipped", "ok"]


def test_a_blocking_stage_that_is_late_says_so():
    """The result of a blocking stage that is late is kept, with a warning."""
    result = Pipeline([ListedSearch(), Slow(seconds=0.05, timeout=0.01)]).run("red")
    assert result.warnings == ["slow: finished after its time limit of 0.01 s"]
