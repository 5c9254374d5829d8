"""How documents move: rankings side by side, the stage that cut a document, fallbacks, one deadline."""

import pytest

from milvus_pipeline import DeadlineError, Fallback, Pipeline, Query, QueryError, StageError
from milvus_pipeline.explain import explain
from support.fake_stages.basic import Faulty, FirstOnly, GivenScores, ListedSearch, NeedsOpen, Slow, WordOverlap


def test_each_stage_has_its_ranking():
    """A movement has documents, scores and places after every stage with hits; stages before those are separate."""
    pipeline = Pipeline([NeedsOpen(), ListedSearch(), WordOverlap(), FirstOnly()], name="fruit")
    with pipeline:
        found = explain(pipeline, Query("red plum", id="7"), judged={"2": 1, "nowhere": 3})
    assert (found.system, found.query_id, found.query) == ("fruit", "7", "red plum")
    assert [ranking.stage for ranking in found.before] == ["needs_open"]
    assert [ranking.documents for ranking in found.rankings] == [("0", "1", "2", "3"), ("1", "0", "2", "3"), ("1",)]
    assert found.rankings[1].scores == (2.0, 1.0, 0.0, 0.0)
    assert found.rankings[2].scores == (None,)
    assert found.rankings[1].places["2"] == 3
    assert found.beginnings["1"] == "green pear and red plum"
    assert found.missed == ("nowhere",)


def test_the_stage_that_cut_a_document_is_known():
    """Documents are in the order that they would have without cuts, and each knows the stage that cut it."""
    with Pipeline([ListedSearch(), WordOverlap(top_k=3), FirstOnly()]) as pipeline:
        found = explain(pipeline, "red plum")
    assert found.documents == ("1", "0", "2", "3")
    assert [found.cut_by(document) for document in found.documents] == [
        None,
        "first_only",
        "first_only",
        "word_overlap",
    ]


def test_it_is_what_a_run_gives():
    """The last ranking has the hits of ``run``, in their order."""
    with Pipeline([ListedSearch(), GivenScores(scores=(0.1, None, 0.7, 0.3), top_k=3)]) as pipeline:
        assert explain(pipeline, "x").rankings[-1].documents == tuple(str(hit.id) for hit in pipeline.run("x"))


def test_what_stood_in_gives_the_scores():
    """The ranking has the name of the stage, that it was skipped, why, and the fallback that replaced it."""
    stage = Faulty(on_error=Fallback(WordOverlap(top_k=2)))
    with Pipeline([ListedSearch(), stage]) as pipeline:
        ranking = explain(pipeline, "red plum").rankings[-1]
    assert (ranking.stage, ranking.status, ranking.stood_in) == ("faulty", "skipped", "word_overlap")
    assert "division by zero" in ranking.reason
    assert ranking.scores == (2.0, 1.0)


def test_a_skipped_stage_leaves_the_ranking():
    """A skipped stage without a fallback leaves the ranking and has a reason."""
    with Pipeline([ListedSearch(), Faulty(on_error="skip")]) as pipeline:
        before, after = explain(pipeline, "red").rankings
    assert after.documents == before.documents
    assert (after.status, after.stood_in) == ("skipped", None)


def test_failures_are_raised():
    """The errors of a bad query and of a stage whose ``on_error`` is "raise" are raised."""
    with Pipeline([ListedSearch(), Faulty()]) as pipeline:
        with pytest.raises(QueryError, match="is empty"):
            explain(pipeline, " ")
        with pytest.raises(StageError, match="division by zero"):
            explain(pipeline, "red")


def test_one_deadline_holds_for_all_stages():
    """The time that the first stage took is not available to the next."""
    with (
        Pipeline([Slow(seconds=0.05), ListedSearch()]) as pipeline,
        pytest.raises(DeadlineError, match="listed_search"),
    ):
        explain(pipeline, "red", timeout=0.01)
