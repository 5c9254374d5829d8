"""A dry run: what would be sent, without sending it."""

import numpy as np
import pytest

from milvus_pipeline import DeadlineError, Pipeline, Query, QueryError, StageError, total_planned
from milvus_stages import Truncate
from support.fake_stages.basic import Faulty, ListedSearch, NeedsOpen, Slow, WordOverlap
from support.fake_stages.paid import Paid

TEXTS = ("blue sky", "red apple", None, "green pear and red plum", "red red")


def paid(*stages, **fields):
    """A pipeline that lists five hits, one without text, and would send those that the stages leave."""
    return Pipeline([ListedSearch(documents=TEXTS), *stages, Paid(**fields)], name="papers")


def test_the_reports_say_what_would_be_sent():
    """A dry run has the reranker's figures, and needs no key."""
    pipeline = paid()
    with pipeline.dry_run() as dry:
        (result,) = dry.run_batch(["red"])
    assert result.report("paid").planned == {"requests": 2, "documents": 4, "tokens": 3 + 3 + 6 + 2}
    assert result.report("listed_search").planned == {}
    assert result.usage == {}
    with pytest.raises(StageError, match="PAID_API_KEY is not set"):
        pipeline.open()


@pytest.mark.parametrize("top_k", [None, 2])
def test_what_is_planned_is_what_a_run_sends(monkeypatch, top_k):
    """Requests and documents are those of a real run, query by query, also for hits without text and after a cut."""
    pipeline = paid(Truncate(top_k=4), top_k=top_k)
    planned = pipeline.dry_run().run_batch(["red", "blue sky"])
    monkeypatch.setenv("PAID_API_KEY", "a-key")
    with pipeline:
        ran = pipeline.run_batch(["red", "blue sky"])
    for one, other in zip(planned, ran, strict=True):
        plan, cost = one.report("paid").planned, other.report("paid").usage
        assert (plan["requests"], plan["documents"]) == (cost["requests"], cost["documents"]) == (2, 3)
        assert one.warnings == other.warnings == ["paid: 1 of 4 hits have no text; ranked last, without a score"]


def test_no_order_and_no_score_is_invented():
    """The hits keep their order and are cut to `top_k`; a second reranker gets those."""
    pipeline = Pipeline([ListedSearch(), Paid(name="first", top_k=3), WordOverlap(top_k=2), Paid(name="last")])
    (result,) = pipeline.dry_run().run_batch(["green"])
    assert [hit.id for hit in result] == [0, 1]
    assert all(list(hit.scores) == list(hit.ranks) == ["listed_search"] for hit in result)
    assert [report.planned.get("documents") for report in result.reports] == [None, 4, None, 2]


def test_only_what_it_needs_is_opened_and_run():
    """Rerankers stay closed, local ones too; stages behind the last that sends do not run."""
    behind = Faulty(how="setup")
    pipeline = Pipeline([ListedSearch(), NeedsOpen(), WordOverlap(), Paid(), WordOverlap(name="x"), behind])
    with pipeline.dry_run() as dry:
        assert [stage.name for stage in dry.stages] == ["listed_search", "needs_open", "word_overlap", "paid"]
        assert [stage.name for stage in dry.services] == ["paid"]
        assert [stage.is_open for stage in pipeline.stages] == [True, True, False, False, False, False]
        (result,) = dry.run_batch(["red"])
        assert pipeline.stages[0].is_open
    assert [report.stage for report in result.reports] == [stage.name for stage in dry.stages]
    assert result.status == "ok"
    assert not any(stage.is_open for stage in pipeline.stages)


def test_a_pipeline_in_use_is_left_open():
    """A dry run leaves an open pipeline open."""
    pipeline = Pipeline([ListedSearch(), NeedsOpen(), Paid()])
    other = Pipeline([pipeline.stages[0], pipeline.stages[1]]).open()
    pipeline.dry_run().run_batch(["red"])
    assert all(stage.is_open for stage in other.stages)
    other.close()
    assert not any(stage.is_open for stage in pipeline.stages)


def test_a_pipeline_that_sends_nothing():
    """Without a service nothing runs or opens."""
    dry = Pipeline([ListedSearch(), Faulty(how="setup"), WordOverlap()]).dry_run()
    assert (dry.stages, dry.services) == ((), ())
    with dry:
        (result,) = dry.run_batch(["red"])
    assert (result.status, result.reports, result.hits) == ("ok", [], [])


def test_failures_are_those_of_a_run():
    """A bad query fails alone, with the place of a real run; without `return_errors` its error is raised."""
    unread = Query("", vector=np.ones(2))
    dry = paid().dry_run()
    blank, vector, good = dry.run_batch([" ", unread, "red"], return_errors=True)
    assert [result.status for result in (blank, vector, good)] == ["failed", "failed", "ok"]
    assert "is empty; give it a text" in str(blank.error)
    assert str(vector.error) == "papers: stages[1] (paid): the query has no text, and a reranker needs one"
    with pytest.raises(QueryError):
        dry.run_batch([unread])


def test_its_time_is_bounded_too():
    """The timeout is the call's, else the dry run's, else the pipeline's."""
    pipeline = paid(Slow(seconds=0.05))
    assert pipeline.dry_run().run_batch(["red"])[0].status == "ok"
    with pytest.raises(DeadlineError, match=r"stages\[2\] \(paid\): timed out"):
        pipeline.dry_run(timeout=0.01).run_batch(["red"])
    (late,) = pipeline.dry_run(timeout=60.0).run_batch(["red"], timeout=0.01, return_errors=True)
    assert isinstance(late.error, DeadlineError)
    with pytest.raises(QueryError, match="timeout: must be a number of seconds, got 'soon'"):
        pipeline.dry_run().run_batch(["red"], timeout="soon")


@pytest.mark.parametrize(
    ("score_of", "documents", "warned"),
    [("first", 3, True), ("listed_search", 2, False)],
)
def test_a_threshold_waits_for_a_score(score_of, documents, warned):
    """A threshold on a reranker's score is skipped with a warning; one on retrieval's is applied, and so is `top_k`."""
    cut = Truncate(min_score=0.9, score_of=score_of, top_k=3)
    pipeline = Pipeline([ListedSearch(), Paid(name="first"), cut, Paid(name="last")])
    (result,) = pipeline.dry_run().run_batch(["red"])
    assert result.report("last").planned["documents"] == documents
    said = "truncate: no hit carries a score by 'first', so min_score 0.9 was not applied"
    assert (said in result.warnings) is warned


def test_the_batches_of_a_job_are_added_up():
    """The sums are made in one pass; a query without a text adds nothing."""
    with paid().dry_run() as dry:
        batches = (["red", "blue", " "] for _ in range(50))
        total = total_planned(result for batch in batches for result in dry.run_batch(batch, return_errors=True))
    assert total == {"paid": {"requests": 200, "documents": 400, "tokens": 1400}}
