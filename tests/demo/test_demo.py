"""The demonstration: what it searches, what it shows, and that a second run reuses the first one's collection."""

import re
import shutil
from pathlib import Path

import pytest

from milvus_pipeline.demo import __main__ as demo
from milvus_pipeline.demo.passages import WORDS, passages

CONFIG = Path(__file__).parents[2] / "configs" / "python_docs.yaml"


@pytest.fixture(scope="module")
def found():
    """The passages of this Python's documentation."""
    return passages()


def test_the_passages_are_many_and_differ(found):
    """There are between 1,000 and 3,000 passages with unique ids and texts."""
    assert 1000 <= len(found) <= 3000
    assert len({passage.id for passage in found}) == len({passage.text for passage in found}) == len(found)


def test_the_passages_are_cut_to_size(found):
    """No passage is longer than an encoder reads, and none is a mere word."""
    lengths = [len(passage.text.split()) for passage in found]
    assert max(lengths) <= 2 * WORDS
    assert min(lengths) >= 12


def test_the_passages_cover_language_and_library(found):
    """The statements, the built-in functions and the modules are all in it, and every run finds the same."""
    names = {passage.title for passage in found}
    assert {"language.try", "builtins.sorted", "shutil.rmtree", "shutil.disk_usage", "itertools.groupby"} <= names
    assert passages() == found


def test_the_demonstration_answers_and_is_reused(found, monkeypatch, tmp_path, capsys, minilm):
    """The first run fills a collection, the second finds it there; both show the same answers, and stages' times."""
    part = [passage for passage in found if passage.title.startswith(("shutil", "difflib", "threading"))]
    monkeypatch.setattr(demo, "passages", lambda: part)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(demo, "console", demo.Console(color_system=None))
    monkeypatch.delenv("MILVUS_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert demo.main([str(CONFIG)]) == 0
    first = capsys.readouterr().out
    assert demo.main([str(CONFIG)]) == 0
    second = capsys.readouterr().out
    assert f"Encoding and inserting the {len(part)} passages of Python's documentation." in first
    assert f"The {len(part)} passages of Python's documentation are in the collection already." in second
    for shown in (first, second):
        assert all(question in shown for question in demo.QUESTIONS)
        assert "shutil.rmtree" in shown
        assert all(stage in shown for stage in ("encode", "milvus_search", "late_interaction", "truncate"))
    ids = [re.findall(r"[\w.]+#\d+", shown) for shown in (first, second)]
    assert ids[0] == ids[1] != []


def test_a_lost_collection_is_made_anew(found, monkeypatch, tmp_path, capsys, minilm):
    """What vouches for a collection does not count once the collection is gone."""
    monkeypatch.setattr(demo, "passages", lambda: found[:20])
    monkeypatch.delenv("MILVUS_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert demo.main([str(CONFIG)]) == 0
    shutil.rmtree(tmp_path / "data" / "python_docs.db")
    assert demo.main([str(CONFIG)]) == 0
    assert "in the collection already" not in capsys.readouterr().out
