"""The report in a browser: no requests, nothing cut off or overlapping, readable in both colour schemes."""

from itertools import pairwise, product
from pathlib import Path

import pytest

from support import sample_evaluations

LOOKS = (Path(__file__).parent / "looks.js").read_text(encoding="utf-8")
GOOD = {"outside": [], "labels": [], "texts": [], "faint": [], "wide": []}


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        *product(("one_system", "sweep"), (390, 1440), ("light", "dark")),
        ("hostile", 390, "dark"),
        ("hostile", 1440, "light"),
        ("bare", 390, "light"),
    ],
)
def test_a_page_looks_right_and_keeps_to_itself(opened, name, width, scheme):
    """Unfolded, no text leaves its picture, overlaps or is faint; the page fits its width and sends no requests."""
    with opened(name, width=width, scheme=scheme, unfold=True) as page:
        assert page.evaluate(LOOKS) == GOOD
        assert page.seen.requests == [page.url]
        assert page.seen.complaints == []


def test_hostile_texts_are_texts(opened):
    """They appear on the page as written, and create no element."""
    with opened("hostile", unfold=True) as page:
        assert page.locator("h1").inner_text() == sample_evaluations.HOSTILE[0]
        assert (
            page.evaluate("document.images.length + document.querySelectorAll('[onerror], [onmouseover]').length") == 0
        )
        assert page.locator("script").count() == 1
        assert not {"\u202e", "\x1b", "\x07", "\x00"} & set(page.content())


def test_light_and_dark_differ(opened):
    """Background, text and pictures follow the reader's colour scheme."""
    asked = """() => [
        getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.body).color,
        getComputedStyle(document.querySelector(".quality .bar")).fill,
    ]"""
    colours = []
    for scheme in ("light", "dark"):
        with opened("one_system", scheme=scheme) as page:
            colours.append(page.evaluate(asked))
    assert all(light != dark for light, dark in zip(*colours, strict=True))


def test_queries_open_by_keyboard(opened):
    """Tab reaches the next query, and Enter opens it."""
    with opened("one_system") as page:
        folded = page.locator("details.movement:not([open])")
        count = folded.count()
        page.locator("details.movement > summary").first.focus()
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('details.movement:not([open]) > summary')"):
                break
        page.keyboard.press("Enter")
        assert folded.count() == count - 1


def test_pointing_at_a_document_shows_which_it_is(opened):
    """The tooltip shows id, grade, ranks, scores and text, and the document's line is highlighted."""
    with opened("one_system") as page:
        movement = page.locator("details.movement[open]")
        document = movement.locator("g.relevant").first
        line = document.locator(".line").first
        before = line.evaluate("(line) => getComputedStyle(line).stroke")
        document.locator(".mark").first.hover()
        assert line.evaluate("(line) => getComputedStyle(line).stroke") != before
        lines = page.evaluate("document.querySelector('g.document:hover > title').textContent").splitlines()
        assert ", judged " in lines[0]
        assert lines[1].startswith("milvus_search: place ")
        assert ", score " in lines[1]
        assert lines[3].startswith("truncate: ")
        assert lines[4].startswith("boundary layer flow")


def test_judged_documents_are_marked(opened):
    """Relevant documents are shaded and show their grade; those that no stage found are listed."""
    with opened("one_system") as page:
        movement = page.locator("details.movement[open]")
        number = int(movement.locator(".query-id").inner_text())
        made = next(one for one in sample_evaluations.one_system().movements if one.query_id == str(number))
        relevant = [document for document, grade in made.judged.items() if grade > 0]
        assert movement.locator("g.relevant").count() == len(relevant) - len(made.missed)
        assert movement.locator("g.irrelevant").count() == 1
        assert (
            movement.locator("ul.relevant .grade").all_inner_texts().sort()
            == [str(made.judged[document]) for document in relevant if document not in made.missed].sort()
        )
        assert movement.locator("ul.missed li").all_inner_texts() == ["3 never-found"]
        strokes = page.evaluate(
            """() => ["relevant", "unjudged"].map((kind) =>
                getComputedStyle(document.querySelector(`details[open] g.${kind} .line`)).strokeWidth)"""
        )
        assert strokes[0] > strokes[1]


def test_without_scripts_it_says_the_same(opened):
    """Without the script, which only sorts, the page shows the same text."""
    with opened("sweep") as page:
        with_scripts = page.locator("body").inner_text()
    with opened("sweep", scripts=False) as page:
        assert page.locator("body").inner_text() == with_scripts
        assert page.locator("svg.scatter:visible").count() == 1


def test_tables_of_systems_are_sorted_by_a_click(opened):
    """One click sorts upwards, two downwards, by value and not by text; the heading shows the direction."""
    with opened("sweep") as page:
        median = page.locator(".sortable th button", has_text="median")
        figures = """() => [...document.querySelectorAll(".sortable tbody tr")]
            .map((row) => Number(row.cells[7].dataset.value))"""
        median.click()
        upwards = page.evaluate(figures)
        median.click()
        assert page.evaluate(figures) == sorted(upwards, reverse=True)
        assert upwards == sorted(system.latency.p50 for system in sample_evaluations.sweep().systems)
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("median")


def test_a_reader_of_screens_is_reported(opened):
    """The page has a language, one title, headings without a gap, and a label for every picture."""
    with opened("sweep", unfold=True) as page:
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.title() == "papers: a sweep · evaluation"
        levels = page.evaluate(
            "() => [...document.querySelectorAll('h1, h2, h3, h4')].map((heading) => Number(heading.tagName[1]))"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        silent = "svg:not([role=img]), svg:not([aria-label]), svg[aria-label='']"
        assert page.locator(silent).count() == 0
