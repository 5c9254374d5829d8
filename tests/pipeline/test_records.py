"""The records: their content, equality, and form as plain data."""

import json

import numpy as np
import pytest

from milvus_pipeline import Hit, Query, RerankResult, SearchResult, StageReport


def test_hit_keeps_every_score_it_was_given():
    """Ranking returns a hit with one more rank, and one more score unless it is None."""
    first = Hit(7, "text", 0.0).ranked("search", 0.5, 3)
    unscored = first.ranked("rerank", None, 9)
    assert (unscored.score, unscored.scored_by, unscored.ranks) == (0.5, "search", {"search": 3, "rerank": 9})
    hit = first.ranked("rerank", -2.0, 1)
    assert first.scores == {"search": 0.5}
    assert hit.score == -2.0
    assert hit.scored_by == "rerank"
    assert hit.scores == {"search": 0.5, "rerank": -2.0}
    assert hit.ranks == {"search": 3, "rerank": 1}


def test_what_does_not_count_for_equality():
    """Queries compare without their vectors, results without timings; a result is true unless it failed."""
    assert Query("a") == Query("a").with_vector(np.ones(3, dtype=np.float32))
    assert Query("a") != Query("b")
    one = SearchResult(Query("a"), [], "ok", [StageReport("s", "s", 0.1, 0, 0)])
    assert one == SearchResult(Query("a"), [], "ok", [StageReport("s", "s", 9.9, 0, 0, batch_size=8)])
    assert one
    assert not SearchResult(Query("a"), status="failed")


def test_result_as_data_is_the_documented_json_line():
    """A result turns into exactly the members that the JSONL output promises."""
    hit = Hit("k", "text", 0.0, {"page": 3}).ranked("search", 0.5, 1)
    result = SearchResult(Query("a", id="q1"), [hit], "ok", [StageReport("search", "milvus_search", 0.25, 0, 1)])
    data = json.loads(json.dumps(result.to_dict()))
    assert data["query"] == {"id": "q1", "text": "a"}
    assert data["status"] == "ok"
    assert data["hits"] == [
        {
            "id": "k",
            "score": 0.5,
            "text": "text",
            "scores": {"search": 0.5},
            "ranks": {"search": 1},
            "fields": {"page": 3},
        }
    ]
    assert data["reports"][0]["seconds"] == 0.25
    assert "error" not in data


def test_report_is_found_by_the_name_of_its_stage():
    """`report` lists the reports there are if there is none of that name."""
    result = SearchResult(Query("a"), reports=[StageReport("search", "milvus_search", 0.25, 0, 1)])
    assert result.report("search").seconds == 0.25
    with pytest.raises(KeyError, match="no report of a stage 'rerank'"):
        result.report("rerank")


def test_rerank_result_prints_as_in_the_pymilvus_model_library():
    """The repr is that of PyMilvus's class."""
    from pymilvus.model.base import RerankResult as Theirs

    for arguments in (('it\'s a "text"', 0.9911615761470803, 1), ("", -4.0, 0)):
        assert repr(RerankResult(*arguments)) == repr(Theirs(*arguments))
        assert str(RerankResult(*arguments)) == str(Theirs(*arguments))
        assert RerankResult(*arguments).to_dict() == Theirs(*arguments).to_dict()
