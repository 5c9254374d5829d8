"""How queries are run: what systems have in common once, stages open once, a warm-up, in flat memory."""

import gc

import pytest

from milvus_pipeline import Fallback, Pipeline, Query, SearchResult, StageError, evaluate
from support.fake_stages.basic import Faulty, FirstOnly, ListedSearch
from support.fake_stages.evaluation import Hurried, TableRerank, TableSearch, calls, setups

pytest.importorskip("ir_measures")
pytest.importorskip("scipy")
pytest.importorskip("statsmodels")

TABLE = {"one": ["a", "b", "c"], "two": ["b", "x", "y", "a"]}
QRELS = {"1": {"a": 1, "c": 2}, "2": {"a": 1, "z": 1}}
QUERIES = [Query("one", id="1"), Query("two", id="2")]


def pipeline(*stages, name="fake", timeout=None):
    return Pipeline([TableSearch(table=TABLE), *stages], name=name, timeout=timeout)


def test_what_systems_have_in_common_runs_once():
    """Equal stages behind equal stages are one, whatever the pipelines are called; behind another one they are two."""
    found = evaluate(
        [
            pipeline(name="search"),
            pipeline(TableRerank(name="first", first=("c",)), FirstOnly(), name="cut"),
            pipeline(TableRerank(name="first", first=("c",)), name="whole"),
            pipeline(TableRerank(name="second"), TableRerank(name="first", first=("c",)), name="twice"),
        ],
        QUERIES,
        QRELS,
        warm_up=False,
    )
    assert calls == {"table_search": 2, "first": 4, "second": 2}
    assert setups == {"table_search": 1, "first": 2, "second": 1}
    shared = {system.name: [stage.shared for stage in system.stages] for system in found.systems}
    assert shared == {
        "search": [True],
        "cut": [True, True, False],
        "whole": [True, True],
        "twice": [True, False, False],
    }
    assert found.system("cut").stages[:2] == found.system("whole").stages


def test_shared_stages_give_what_each_system_gives_alone():
    """Figures do not depend on what else is evaluated."""
    systems = [pipeline(name="a"), pipeline(TableRerank(first=("c", "a")), name="b")]
    together = evaluate(systems, QUERIES, QRELS)
    for system, alone in zip(together.systems, (evaluate(one, QUERIES, QRELS) for one in systems), strict=True):
        assert system.per_query == alone.systems[0].per_query


def test_systems_with_different_timeouts_share_nothing():
    """What a stage does in the time it has is not what it does in another."""
    evaluate([pipeline(name="a"), pipeline(name="b", timeout=60)], QUERIES, QRELS, warm_up=False)
    assert calls == {"table_search": 4}


def test_a_stage_has_what_those_before_it_left_of_the_timeout():
    """The pipeline's timeout is for the query, and not for each stage of it."""
    Hurried.budgets.clear()
    evaluate(pipeline(Hurried(), Hurried(name="later"), timeout=60), QUERIES, QRELS, warm_up=False)
    first, later = Hurried.budgets[:2], Hurried.budgets[2:]  # of the two queries
    assert all(after < before < 60 for before, after in zip(first, later, strict=True))


def test_a_stage_that_cannot_open_is_reported_before_any_query_runs():
    """The message leads with the system; what had been opened is closed again."""
    search = TableSearch(table=TABLE)
    broken = Pipeline([search, TableRerank(broken=True)], name="whole")
    with pytest.raises(
        StageError, match=r"whole: stages\[1\] \(table_rerank\): cannot be opened: OSError: no such model"
    ):
        evaluate([Pipeline([search], name="search"), broken], QUERIES, QRELS)
    assert not calls
    assert not search.is_open


def test_nothing_stays_open():
    """An open pipeline stays open, a closed one closed."""
    ours, theirs = TableSearch(table=TABLE), TableSearch(name="other", table=TABLE)
    with Pipeline([theirs], name="open") as opened:
        evaluate([Pipeline([ours], name="closed"), opened], QUERIES, QRELS)
        assert theirs.is_open
    assert not ours.is_open
    assert not theirs.is_open


def test_a_stage_that_cannot_be_closed_costs_no_figures(caplog):
    """All has been measured by then; that it stuck is logged."""
    found = evaluate(pipeline(Faulty(how="teardown", on_error="skip")), QUERIES, QRELS)
    assert found.judged == 2
    assert "cannot be closed: OSError: stuck" in caplog.text


def test_a_fault_of_several_systems_is_reported_once():
    """A variant of a sweep more is no line more."""
    systems = {name: pipeline(TableRerank(top_k=top_k)) for top_k, name in enumerate("abcde", 1)}
    found = evaluate(systems, [*QUERIES, Query("unknown", id="3")], {**QRELS, "3": {"a": 1}})
    (warning,) = found.warnings
    assert warning.startswith("a, b, c and 2 more: 1 of 3 queries failed (query: 1) and count as having found nothing")


def test_the_warm_up_goes_as_far_as_nobody_notices(tmp_path):
    """The first query runs once more, but neither through what is paid for, nor through what keeps scores."""
    found = evaluate(
        [
            pipeline(
                TableRerank(name="local"), TableRerank(name="paid", paid=True), TableRerank(name="behind"), name="a"
            ),
            pipeline(TableRerank(name="keeps", cache=str(tmp_path / "scores.db")), name="b"),
            pipeline(TableRerank(name="spare", on_error=Fallback(TableRerank(name="sends", paid=True))), name="c"),
        ],
        QUERIES,
        QRELS,
    )
    assert calls == {"table_search": 3, "local": 3, "paid": 2, "behind": 2, "keeps": 2, "spare": 2}
    assert all(sum(stage.statuses.values()) == 2 for system in found.systems for stage in system.stages)


def test_progress_is_reported_in_stage_runs():
    """One query in one stage is one run; stages in common count once."""
    steps = []
    evaluate(
        [pipeline(name="a"), pipeline(FirstOnly(), name="b")],
        QUERIES,
        QRELS,
        on_progress=lambda done, of: steps.append((done, of)),
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_times_of_a_movement_are_those_of_its_query():
    """Its share of the batch, as everywhere in the figures."""
    found = evaluate(pipeline(TableRerank(first=("c",))), QUERIES, QRELS, batch_size=2)
    latencies = [stage.latency.p50 for stage in found.systems[0].stages]
    assert [ranking.seconds for ranking in found.movements[0].rankings] == pytest.approx(latencies)


def test_memory_does_not_grow_with_the_queries():
    """While 200 queries run, no more results are alive than those of the few that are under way."""
    alive = []

    def look(done: int, of: int) -> None:
        if done % 100 == 0:
            alive.append(sum(type(one) is SearchResult and bool(one.hits) for one in gc.get_objects()))

    queries = (Query("red", id=str(number)) for number in range(200))
    qrels = {str(number): {"1": 1} for number in range(200)}
    evaluate(Pipeline([ListedSearch(), FirstOnly()]), queries, qrels, movements=0, on_progress=look)
    assert len(alive) == 4
    assert max(alive) <= 48


def test_what_stages_work_with_is_reported():
    """Fallbacks too; a stage that cannot say it is a warning."""
    spare = TableRerank(name="spare", first=("a",))
    found = evaluate(pipeline(TableRerank(fails=True, on_error=Fallback(spare))), QUERIES, QRELS)
    assert found.systems[0].identity == {"spare": {"first": ["a"]}}
    assert "fake: the identity of table_rerank is unknown: nobody knows" in found.warnings
