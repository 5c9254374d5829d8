"""What the report draws with: scales, ticks, labels that keep off each other, places on paper."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milvus_pipeline.evaluation.report.bump import PlaceScale, bump_chart, drawn_documents, shade
from milvus_pipeline.evaluation.report.prose import significance_text
from milvus_pipeline.evaluation.report.scatter import scatter
from milvus_pipeline.evaluation.report.stage_charts import latency_chart, quality_chart
from milvus_pipeline.evaluation.report.svg import Scale, fit_scale
from milvus_pipeline.text import cut_text, difference_text, money_text, p_value_text, time_text
from support import sample_evaluations

POSITIVE = st.floats(min_value=1e-6, max_value=1e6)


def parsed(drawing):
    """The elements of a picture."""
    return ElementTree.fromstring(drawing)  # noqa: S314 - what the report itself has drawn


@given(st.lists(POSITIVE, min_size=1, max_size=20))
def test_values_lie_within_their_scale(values):
    """With room at both ends, and larger values farther along, whether the scale is linear or logarithmic."""
    scale = fit_scale(values, 0, 100)
    assert scale.log == (max(values) / min(values) > 10)
    at = [scale(value) for value in sorted(values)]
    assert at == sorted(at)
    assert at[0] >= 0
    assert at[-1] <= 100


@given(st.lists(POSITIVE, min_size=1, max_size=5), st.integers(4, 9))
@example([1.0000000000000002e-06], 4)
def test_ticks_are_few_and_within(values, at_most):
    """There is at least one, none lies outside, and each once."""
    scale = fit_scale(values, 0, 100)
    ticks = scale.ticks(at_most)
    assert 1 <= len(ticks) <= at_most + 1
    assert len(set(ticks)) == len(ticks)
    rounding = 1e-9 * (scale.high - scale.low)
    assert all(scale.low - rounding <= tick <= scale.high + rounding for tick in ticks)


def test_ticks_are_round():
    """1, 2, 2.5 and 5 on a linear scale, the round numbers of each decade on a logarithmic one."""
    assert Scale(0, 1, 0, 100).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Scale(0.37, 0.44, 0, 100).ticks() == [0.38, 0.4, 0.42, 0.44]
    assert Scale(0.003, 1.2, 0, 100, log=True).ticks() == [0.003, 0.01, 0.03, 0.1, 0.3, 1]
    assert Scale(1, 1e6, 0, 100, log=True).ticks(4) == [1, 100, 1e4, 1e6]
    assert Scale(0.02, 0.3, 0, 100, log=True).ticks() == [0.02, 0.05, 0.1, 0.2]


@pytest.mark.parametrize("width", [326, 1060])
@pytest.mark.parametrize("count", [2, 8, 24, 60])
def test_labels_of_points_keep_off_each_other(count, width):
    """By the estimated width of their texts; all labels are drawn if there is room."""
    systems = sample_evaluations.sweep(count).systems
    root = parsed(scatter(systems, "nDCG@10", width, 400))
    boxes = []
    for label in root.findall(".//text[@class='label']"):
        half = len(label.text) * 12 * 0.65 / 2
        x, y = float(label.get("x")), float(label.get("y"))
        boxes.append((x - half, y - 10, x + half, y + 2))
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    if count <= 24 and width > 1000:
        assert len(boxes) == count


def test_labels_of_points_keep_off_the_front():
    """Where there is room, as there is for the names of six systems."""
    root = parsed(scatter(sample_evaluations.sweep(6).systems, "nDCG@10", 1060, 400))
    corners = [tuple(map(float, corner.split())) for corner in root.find("./path").get("d")[1:].split("L")]
    assert all(one[0] == other[0] or one[1] == other[1] for one, other in pairwise(corners))
    for label in root.findall(".//text[@class='label']"):
        half = len(label.text) * 12 * 0.65 / 2
        x, y = float(label.get("x")), float(label.get("y"))
        for (left, top), (right, bottom) in pairwise(corners):
            beside = max(left, right) <= x - half or min(left, right) >= x + half
            assert beside or max(top, bottom) <= y - 10 or min(top, bottom) >= y + 2


def test_systems_in_one_spot_are_drawn_documents():
    """Sixty systems of the same quality and latency do not hinder each other."""
    same = sample_evaluations.sweep(2).systems[0]
    systems = [replace(same, name=str(number)) for number in range(60)]
    root = parsed(scatter(systems, "nDCG@10", 1060, 400))
    assert len(root.findall(".//circle[@class='point']")) == 60


@given(st.integers(2, 10_000))
def test_places_lie_below_each_other(deepest):
    """The first twenty in equal steps, all of them on a page of bounded height, and ticks that do not touch."""
    down = PlaceScale(deepest)
    at = [down(place) for place in range(1, min(deepest, 200) + 1)]
    assert at == sorted(set(at))
    assert down.end < 720
    ticks = [down(place) for place in down.ticks()]
    assert all(after - before >= 13 for before, after in pairwise(ticks))


@given(st.integers(1, 12).flatmap(lambda highest: st.tuples(st.integers(1, highest), st.just(highest))))
def test_a_higher_grade_has_no_lighter_shade(grades):
    """Shades go from 1 to 4, whatever the grades; the highest grade has the strongest."""
    grade, highest = grades
    assert 1 <= shade(grade, highest) <= 4
    assert shade(grade, highest) <= shade(highest, highest) == 4


def test_each_document_has_a_line_and_each_place_a_mark():
    """The picture shows all rankings, and a cross for each relevant document that was cut."""
    movement = sample_evaluations.movement(3)
    root = parsed(bump_chart(movement, "nDCG@10"))
    groups = [group for group in root.iter("g") if "document" in group.get("class", "").split()]
    assert len(groups) == len(drawn_documents(movement)) == 100
    assert len(root.findall(".//circle")) == sum(len(ranking.documents) for ranking in movement.rankings)
    final = set(movement.rankings[-1].documents)
    gone = [one for one, grade in movement.judged.items() if grade > 0 and one not in final and one != "never-found"]
    relevant = [group for group in groups if "relevant" in group.get("class").split()]
    assert sum(group.find("path[@class='cut']") is not None for group in relevant) == len(gone)


def test_bars_are_as_long_as_their_figures():
    """In proportion, from 0 on: quality to the ceiling, median time to the 95th percentile."""
    system = sample_evaluations.system()
    quality = parsed(quality_chart(system, "nDCG@10", (), 340))
    bars = [float(bar.get("width")) for bar in quality.findall(".//rect[@class='bar']")]
    values = [stage.measures["nDCG@10"] for stage in system.stages if stage.measures]
    assert [bar / bars[0] for bar in bars] == pytest.approx([value / values[0] for value in values], rel=0.01)
    latency = parsed(latency_chart(system, 340))
    assert len(latency.findall(".//rect")) == len(system.stages) + 1
    assert re.search(r"late_interaction: half of the queries within 180 ms", "".join(latency.itertext()))


def test_figures_are_said_shortly():
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


def test_wide_signs_count_twice():
    """Texts are cut by what they take on paper."""
    assert cut_text("検索とは何ですか", 7) == "検索と…"
    assert cut_text("boundary  layer\n", 30) == "boundary layer"
