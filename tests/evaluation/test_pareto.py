"""The Pareto front against its definition."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline.evaluation.pareto import mark_front
from milvus_pipeline.evaluation.records import Latency, StageFigures, SystemFigures


def system(quality, seconds, name="a"):
    """A system of one stage with this quality (None: without measures) and median latency."""
    measures = {} if quality is None else {"nDCG@10": quality, "R@100": 1 - quality}
    time = Latency(mean=9.0, p50=seconds, p95=9.0, p99=9.0)
    stage = StageFigures("s", "s", 1.0, measures, {}, latency=Latency(0, 0, 0, 0), elapsed=time)
    return SystemFigures(name, {}, {}, {}, (stage,), {})


def on_front(*points):
    """Which of the points are marked."""
    return [marked.on_front for marked in mark_front(system(*point) for point in points)]


few = st.integers(0, 4).map(lambda number: number / 4)  # so that ties are common


@given(st.lists(st.tuples(few, few), max_size=12))
def test_the_front_is_what_its_definition_says(points):
    """A system is marked exactly if no other is at least as good in both and better in one of them."""
    wanted = [
        not any(q >= quality and t <= seconds and (q > quality or t < seconds) for q, t in points)
        for quality, seconds in points
    ]
    assert on_front(*points) == wanted


def test_without_measures_a_system_is_off_the_front_and_keeps_none_off():
    """A pipeline that retrieves nothing has no quality; a figure that is no number says nothing."""
    assert on_front((None, 0.1), (math.nan, 0.1), (0.5, math.nan), (0.2, 1.0)) == [False, False, False, True]


def test_a_system_that_failed_for_all_queries_is_off_the_front():
    """Its latency is that of nothing, and so the least of all."""
    failed = replace(system(0.0, 0.0), statuses={"failed": 3})
    some = replace(system(0.2, 0.5), statuses={"ok": 1, "failed": 2})
    assert [marked.on_front for marked in mark_front([failed, some, system(0.5, 1.0)])] == [False, True, True]
