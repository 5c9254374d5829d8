"""The report as a file: whole, closed to the outside, escaped, with the figures of the evaluation."""

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from milvus_pipeline.evaluation.report import report_html, write_report
from milvus_pipeline.text import measure_text, time_text
from support import sample_evaluations

ROOT = Path(__file__).parent.parent.parent


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        """All that is to be read, on one line."""
        return " ".join(" ".join(self.texts).split())


@pytest.mark.parametrize("name", ["one_system", "sweep", "hostile", "bare"])
def test_the_page_asks_for_nothing(name):
    """No element has an external address, an event handler or a style attribute, and no style has a URL."""
    html = report_html(getattr(sample_evaluations, name)())
    for tag, attributes in Elements(html).found:
        assert tag not in {"img", "link", "iframe", "object", "embed", "base", "form", "foreignobject", "image", "use"}
        assert not {"src", "style", "xlink:href", "srcset"} & set(attributes)
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_allows_its_own_style_and_script_alone():
    """The policy has the hashes of the page's style and script."""
    html = report_html(sample_evaluations.hostile())
    (policy,) = [
        attributes["content"]
        for tag, attributes in Elements(html).found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_texts_from_elsewhere_are_escaped():
    """They are texts of the page, and neither elements nor controls of the direction of writing."""
    html = report_html(sample_evaluations.hostile())
    page = Elements(html)
    assert [tag for tag, _ in page.found].count("script") == 1
    assert sample_evaluations.HOSTILE[0] in page.text
    assert "{{ 7 * 7 }} {% raw %}" in page.text
    assert not {"\u202e", "\u202c", "\x1b", "\x00", "\ud800"} & set(html)


def test_figures_are_those_of_the_evaluation():
    """Measures, ceilings, percentiles and differences on the page are those of the records."""
    evaluation = sample_evaluations.sweep(4)
    text = Elements(report_html(evaluation)).text
    for system in evaluation.systems:
        for stage in system.stages:
            expected = [*stage.measures.values(), *stage.ceilings.values()]
            assert all(measure_text(value) in text for value in expected)
            assert all(time_text(seconds) in text for seconds in (stage.latency.p50, stage.elapsed.p50))
    for found in evaluation.comparisons:
        assert f"{abs(found.difference):.3f}" in text or found.difference == 0


def test_the_answer_comes_in_words():
    """What a stage raises, lowers and leaves, whether that may be chance, and what it costs."""
    evaluation = sample_evaluations.one_system()
    text = Elements(report_html(evaluation)).text
    assert (
        "gives nDCG@10 0.360. A perfect order of its 100 hits would give 0.910. Takes 4.2 ms, 2 % of the time." in text
    )
    assert "raises nDCG@10 by 0.050 to 0.410 (p < 0.001). Takes 180 ms, 94 % of the time; costs 0.45 in total." in text
    assert "leaves nDCG@10 as it is; lowers R@100 by 0.310 to 0.470 (p < 0.001)." in text
    unsure = tuple(replace(found, p_corrected=0.3) for found in evaluation.comparisons)
    text = Elements(report_html(replace(evaluation, comparisons=unsure))).text
    assert "raises nDCG@10 by 0.050 to 0.410, which may be chance (p = 0.3)." in text
    assert "milvus_search: 0.360; the difference may be chance" in text


def test_a_stage_that_changed_no_ranking_is_reported():
    """Nothing was compared then, and a bare difference of 0 would leave open why."""
    text = Elements(report_html(replace(sample_evaluations.one_system(), comparisons=()))).text
    assert "no ranking changed" in text
    assert "±0" not in text


def _without_values(system):
    nothing = {"nDCG@10": math.nan, "R@100": math.nan}
    stages = (replace(stage, measures=nothing, ceilings=nothing) for stage in system.stages)
    return replace(system, stages=tuple(stages))


def test_a_measure_without_a_value_is_reported_as_such():
    """Of one system among several, of all of them, and of the only one; systems with values are drawn all the same."""
    given = sample_evaluations.sweep(4)
    first, *others = given.systems
    one = Elements(report_html(replace(given, systems=(_without_values(first), *others))))
    assert "because no query succeeded or the measure has no value: 1." in one.text
    assert [attributes.get("class") for tag, attributes in one.found if tag == "circle"].count("point") == 6
    every = report_html(replace(given, systems=tuple(map(_without_values, given.systems)), comparisons=()))
    only = report_html(replace(sample_evaluations.one_system(), systems=(_without_values(first),), comparisons=()))
    for html in (every, only):
        text = Elements(html).text
        assert "no query has a value" in text
        assert not re.search(r"\bnan\b", text)


def test_a_system_that_answered_nothing_is_neither_fastest_nor_drawn():
    """If all queries fail at once, there are no times to report."""
    given = sample_evaluations.sweep(3)
    stages = tuple(replace(stage, elapsed=sample_evaluations.latency(0.0)) for stage in given.systems[0].stages)
    failed = replace(given.systems[0], name="broken", stages=stages, statuses={"failed": 225})
    text = Elements(report_html(replace(given, systems=(*given.systems[1:], failed)))).text
    assert f"fastest, median {time_text(given.systems[1].latency.p50)}" in text
    assert "because no query succeeded or the measure has no value: 3." in text


def test_whole_stages_of_a_sweep_go_by_the_names_of_the_systems():
    """Their configurations would fill the table; numbers and words have separate columns."""
    given = sample_evaluations.sweep(2)
    columns = Elements(report_html(given))
    assert any("place" in attributes.get("class", "") for tag, attributes in columns.found if tag == "th")
    reranker = {"type": "bge", "model": "BAAI/bge-reranker-v2-m3"}
    systems = tuple(
        replace(system, variant={"rerank": value})
        for system, value in zip(given.systems, (reranker, None), strict=True)
    )
    page = Elements(report_html(replace(given, systems=systems)))
    assert not any("place" in attributes.get("class", "") for tag, attributes in page.found if tag == "th")
    assert "BAAI/bge-reranker-v2-m3" not in page.text


def test_the_cost_of_a_query_is_that_of_those_asked():
    """Queries without judgements are not asked, and cost nothing."""
    text = Elements(report_html(replace(sample_evaluations.one_system(), queries=1000))).text
    assert "cost of 1,000 queries 2.00 0.45 for these queries" in text


def test_what_went_wrong_is_reported():
    """Warnings are at the top, failed queries above the figures, skipped stages in their table."""
    text = Elements(report_html(sample_evaluations.one_system())).text
    assert "Read this first the latency of late_interaction" in text
    assert "Some queries were not answered completely: 3 degraded." in text
    assert "3 skipped (deadline 2, unavailable 1)" in text


def test_queries_are_grouped_by_gain_and_loss():
    """The largest gain comes first, and is open; what was lost comes in its own group."""
    page = Elements(report_html(sample_evaluations.one_system()))
    gains = re.findall(r"Largest gains in nDCG@10 (.*?) Largest losses in nDCG@10 (.*)", page.text)
    assert gains
    movements = [attributes for tag, attributes in page.found if attributes.get("class") == "movement"]
    assert ["open" in attributes for attributes in movements] == [True] + [False] * 5


def test_deep_documents_are_left_out_of_the_picture_and_counted():
    """Of 1,000 candidates those are drawn that were ever among the first 100, and the relevant ones."""
    deep = sample_evaluations.movement(1, documents=1000)
    last = deep.rankings[1].documents[-1]
    judged = {**deep.judged, last: 2}
    html = report_html(replace(sample_evaluations.one_system(), movements=(replace(deep, judged=judged),)))
    shown = len(re.findall(r'<g class="document', html))
    assert 100 < shown < 200
    assert f"{1000 - shown:,} documents are left out" in Elements(html).text
    assert last in html


def test_the_file_appears_whole_and_replaces_the_old_one(tmp_path):
    """And nothing else is left in its folder."""
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(sample_evaluations.bare(), path)
    assert path.read_text(encoding="utf-8") == report_html(sample_evaluations.bare())
    assert list(tmp_path.iterdir()) == [path]


def test_the_wheel_carries_the_templates():
    """All files that the report reads are in what is installed."""
    builder = WheelBuilder(str(ROOT))
    carried = {Path(included.distribution_path).name for included in builder.recurse_included_files()}
    templates = ROOT / "pipeline" / "milvus_pipeline" / "evaluation" / "report" / "templates"
    assert {path.name for path in templates.iterdir()} <= carried
