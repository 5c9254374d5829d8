"""Measures of which ir-measures asks more than an order of documents: scores, ids, grades, something not relevant."""

import pytest

from milvus_pipeline import ConfigError
from milvus_pipeline.evaluation.measures import Measures

ir_measures = pytest.importorskip("ir_measures")

JUDGED = {"1": {"a": 1, "b": 2, "never-found": 2}, "2": {"c": 1}}


def test_a_measure_that_looks_at_scores_is_that_of_a_written_run():
    """Compat takes 0 for the score of a document that was not found, so all that were found have to be above it."""
    measures = Measures(["Compat"])
    found = measures.values(JUDGED, {"1": ["x", "a", "b"], "2": ["c"]})["Compat"]
    qrels = [ir_measures.Qrel(query, document, grade) for query in JUDGED for document, grade in JUDGED[query].items()]
    scores = (("1", "x", 0.9), ("1", "a", 0.8), ("1", "b", 0.7), ("2", "c", 0.6))
    run = [ir_measures.ScoredDoc(*scored) for scored in scores]
    wanted = ir_measures.iter_calc([ir_measures.parse_measure("Compat")], qrels, run)
    assert found == pytest.approx({metric.query_id: metric.value for metric in wanted})


def test_every_query_is_tried():
    """Measures of gdeval refuse grades above 4 in any query, which is reported before anything runs."""
    measures = Measures(["ERR@10"])
    measures.check(JUDGED)
    with pytest.raises(ConfigError, match=r"ERR@10 cannot be computed here: .* grades of at most 4"):
        measures.check({**JUDGED, "3": {"a": 5}})


def test_a_measure_that_divides_by_what_is_not_relevant_can_be_tried():
    """Accuracy@1 fails if only relevant documents rank; the check must not fail for that reason."""
    Measures(["Accuracy@1"]).check(JUDGED)


def test_a_query_with_nothing_but_spam_does_not_end_the_process():
    """If a query that follows others has no grade above -2, pytrec_eval would write past its memory."""
    measures = Measures(["nDCG@10", "AP", "Judged@2"])
    judged = {"1": {"a": 3, "b": 3}, "2": {"a": -2, "b": -3}, "3": {"a": 1}}
    for _ in range(50):
        measures.check(judged)
        found = measures.values(judged, {query: ["a", "x"] for query in judged})
    assert found["AP"] == {"1": 0.5, "2": 0.0, "3": 1.0}
    assert found["Judged@2"] == {"1": 0.5, "2": 0.5, "3": 0.5}
