"""The records: their content, equality, and form as plain data."""

import json

import numpy as np
import pytest

from milvus_pipeline import Hit, Query, RerankResult, SearchResult, StageReport


def test_hit_keeps_every_score_it_was_given():
    """Ranking a hit again adds a score and a rank and leaves the earlier ones."""
    hit = Hit(7, "text", 0.0).ranked("search", 0.5, 3).ranked("rerank", -2.0, 1)
    assert hit.score == -2.0
    assert hit.scored_by == "rerank"
    assert hit.scores == {"search": 0.5, "rerank": -2.0}
    assert hit.ranks == {"search": 3, "rerank": 1}


def test_unscored_hit_keeps_its_latest_score():
    """A rank without a score adds no score, so scales are never mixed under one name."""
    hit = Hit(7, None, 0.0).ranked("search", 0.5, 1).ranked("rerank", None, 9)
    assert (hit.score, hit.scored_by) == (0.5, "search")
    assert hit.ranks == {"search": 1, "rerank": 9}


def test_ranking_leaves_the_hit_it_came_from_alone():
    """Records are values: a stage's work is only in what it returns."""
    first = Hit(7, "text", 0.0).ranked("search", 0.5, 1)
    first.ranked("rerank", 1.0, 2)
    assert first.scores == {"search": 0.5}


def test_queries_compare_without_their_vectors():
    """An encoded query equals the query it came from, and comparing arrays raises nothing."""
    assert Query("a") == Query("a").with_vector(np.ones(3, dtype=np.float32))
    assert Query("a") != Query("b")


def test_results_compare_without_timings():
    """Equal work is equal however long it took and however many queries shared it."""
    one = SearchResult(Query("a"), [], "ok", [StageReport("s", "s", 0.1, 0, 0)])
    two = SearchResult(Query("a"), [], "ok", [StageReport("s", "s", 9.9, 0, 0, batch_size=8)])
    assert one == two


def test_result_without_hits_is_still_a_result():
    """A result is true unless it failed, also without hits."""
    assert SearchResult(Query("a"))
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
