"""docs/stages.md and docs/api.md are what the code says."""

import importlib
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator():
    """The names of docs/generate.py."""
    return runpy.run_path(str(DOCS / "generate.py"))


@pytest.mark.parametrize("page", ["stages.md", "api.md"])
def test_a_generated_page_is_up_to_date(generator, page):
    """The page equals what docs/generate.py writes today."""
    written = generator["PAGES"][page]()
    assert (DOCS / page).read_text(encoding="utf-8") == written, f"docs/{page} differs from the code: run `make docs`"


def test_every_public_name_has_a_docstring(generator):
    """Each public name, and each public method of a public class, is documented."""
    assert generator["undocumented_names"]() == []


@pytest.mark.parametrize("page", ["stages.md", "api.md"])
def test_links_within_a_generated_page_have_a_heading(page):
    """Each link to an anchor of the page leads to a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {title.lower().replace("`", "").replace(".", "").replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


@pytest.mark.parametrize("face", ["milvus_pipeline", "milvus_pipeline.plugin", "milvus_stages.hosted"])
def test_every_public_name_has_a_section(face):
    """The reference has a heading for each name of ``__all__``."""
    titles = set(re.findall(r"^### (\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(importlib.import_module(face).__all__) <= titles
