"""The coordinates of the report's charts: scales, ticks, labels that do not overlap, marks of documents."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milvus_pipeline.evaluation.report.bump import PlaceScale, bump_chart, drawn_documents, shade
from milvus_pipeline.evaluation.report.page import percent
from milvus_pipeline.evaluation.report.prose import significance_text
from milvus_pipeline.evaluation.report.scale import Scale, fit_scale
from milvus_pipeline.evaluation.report.scatter import scatter
from milvus_pipeline.text import cut_text, difference_text, money_text, p_value_text, time_text
from support import sample_evaluations

POSITIVE = st.floats(min_value=1e-6, max_value=1e6)


@given(st.lists(POSITIVE, min_size=1, max_size=20), st.integers(4, 9))
@example([1.0000000000000002e-06], 4)
def test_values_and_ticks_lie_within_their_scale(values, at_most):
    """Larger values have larger coordinates on linear and logarithmic scales, and a few distinct ticks lie within."""
    scale = fit_scale(values, 0, 100, log=True)
    assert scale.log == (max(values) / min(values) > 10)
    at = [scale(value) for value in sorted(values)]
    assert at == sorted(at)
    assert at[0] >= 0
    assert at[-1] <= 100
    ticks = scale.ticks(at_most)
    assert 1 <= len(ticks) <= at_most + 1
    assert len(set(ticks)) == len(ticks)
    rounding = 1e-9 * (scale.high - scale.low)
    assert all(scale.low - rounding <= tick <= scale.high + rounding for tick in ticks)


def test_ticks_are_round():
    """A linear scale has multiples of 1, 2, 2.5 or 5, a logarithmic one round numbers of each decade."""
    assert Scale(0, 1, 0, 100).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Scale(0.37, 0.44, 0, 100).ticks() == [0.38, 0.4, 0.42, 0.44]
    assert Scale(0.003, 1.2, 0, 100, log=True).ticks() == [0.01, 0.1, 1]
    assert Scale(1, 1e6, 0, 100, log=True).ticks(4) == [1, 100, 1e4, 1e6]
    assert Scale(0.02, 0.3, 0, 100, log=True).ticks() == [0.02, 0.05, 0.1, 0.2]


@pytest.mark.parametrize("width", [326, 1060])
@pytest.mark.parametrize("count", [2, 8, 24, 60])
def test_labels_of_points_do_not_overlap(count, width):
    """No label touches another; on a wide page a few systems all have one."""
    labels = scatter(sample_evaluations.sweep(count).systems, "nDCG@10", width, 400)["labels"]
    assert not [pair for pair in combinations(labels, 2) if pair[0].meets(pair[1].x, pair[1].y, pair[1].width, 15)]
    if count <= 24 and width > 1000:
        assert len(labels) == count


@given(st.integers(2, 10_000))
def test_places_lie_below_each_other(deepest):
    """The first twenty in equal steps, all of them on a page of bounded height, and ticks that do not touch."""
    down = PlaceScale(deepest)
    at = [down(place) for place in range(1, min(deepest, 200) + 1)]
    assert at == sorted(set(at))
    assert down(deepest) < 720
    ticks = [down(place) for place in down.ticks()]
    assert all(after - before >= 13 for before, after in pairwise(ticks))


@given(st.integers(1, 12).flatmap(lambda highest: st.tuples(st.integers(1, highest), st.just(highest))))
def test_a_higher_grade_has_no_lighter_shade(grades):
    """Shades go from 1 to 4, whatever the grades; the highest grade has the strongest."""
    grade, highest = grades
    assert 1 <= shade(grade, highest) <= 4
    assert shade(grade, highest) <= shade(highest, highest) == 4


def test_each_document_has_a_line_and_each_place_a_mark():
    """The chart contains all rankings, and a cross for each relevant document that was cut."""
    movement = sample_evaluations.movement(3)
    lines = bump_chart(movement)["documents"]
    assert len(lines) == len(drawn_documents(movement)) == 100
    assert sum(len(line.marks) for line in lines) == sum(len(ranking.documents) for ranking in movement.rankings)
    final = set(movement.rankings[-1].documents)
    gone = [one for one, grade in movement.judged.items() if grade > 0 and one not in final and one != "never-found"]
    assert sum(line.cut is not None for line in lines if "relevant shade" in line.kind) == len(gone)


def test_bars_are_as_long_as_their_values():
    """A bar is a share of the scale, and never leaves it."""
    assert [percent(value, 0.8) for value in (0, 0.2, 0.8, 0.9, -0.1)] == [
        "0.00%",
        "25.00%",
        "100.00%",
        "100.00%",
        "0.00%",
    ]
    assert percent(0, 0) == "0.00%"


def test_figures_are_short():
    """Three figures or so, with their units and signs."""
    assert [time_text(seconds) for seconds in (0.00003, 0.0042, 0.18, 1.254, 312)] == [
        "30 µs",
        "4.2 ms",
        "180 ms",
        "1.25 s",
        "312 s",
    ]
    assert [difference_text(value) for value in (0.0312, -0.0021, 0.0001)] == ["+0.031", "\u22120.002", "±0"]
    assert [p_value_text(value) for value in (0.0002, 0.0412, 0.314, 1.0)] == [
        "p < 0.001",
        "p = 0.041",
        "p = 0.31",
        "p = 1",
    ]
    assert [money_text(amount) for amount in (0, 0.0031, 12.4)] == ["0.00", "0.0031", "12.40"]
    evaluation = sample_evaluations.one_system()
    assert significance_text(evaluation) == "paired t-test, p-values corrected by Holm's method"
    assert "not corrected" in significance_text(replace(evaluation, correction="none"))


def test_wide_characters_count_twice():
    """Texts are cut by the width that they take."""
    assert cut_text("検索とは何ですか", 7) == "検索と…"
    assert cut_text("boundary  layer\n", 30) == "boundary layer"
