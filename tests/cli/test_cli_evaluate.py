"""`evaluate`: figures as tables, JSON and CSV; sweeps; several configurations; exit codes and wrong input."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs" / "evaluation.md"
QUERIES = """\
{"_id": "a", "text": "red plum"}
{"_id": "b", "text": "blue"}
{"_id": "c", "text": "green sky"}
{"_id": "d", "text": "nobody judged this"}
"""
QRELS = "query-id\tcorpus-id\tscore\na\t1\t2\na\t0\t1\nb\t2\t1\nc\t2\t1\nc\t1\t1\n"
SWEEP = """\
name: swept fruit
stages:
  - {type: listed_search}
  - {type: word_overlap}
  - {type: first_only}
sweep:
  word_overlap: [{type: word_overlap}, null]
  word_overlap.weight: [1, -1]
  first_only: [{type: first_only}, null]
"""
SWEPT = [
    "word_overlap=word_overlap weight=1 first_only=first_only",
    "word_overlap=word_overlap weight=1 first_only=none",
    "word_overlap=word_overlap weight=-1 first_only=first_only",
    "word_overlap=word_overlap weight=-1 first_only=none",
    "word_overlap=none first_only=first_only",
    "word_overlap=none first_only=none",
]


@pytest.fixture
def judged(make):
    """The options that name queries and judgements."""
    return "--queries", make("queries.jsonl", QUERIES), "--qrels", make("qrels.tsv", QRELS)


@pytest.fixture
def swept(make):
    """A configuration with a sweep."""
    return make("swept.yaml", SWEEP)


def system_of(data, name):
    """The named system of an evaluation as plain data."""
    return next(system for system in data["systems"] if system["name"] == name)


def test_json_has_every_figure(invoke, fruit, judged):
    """All of the evaluation, as strict JSON on stdout, and nothing else; warnings go to stderr."""
    done = invoke("evaluate", fruit, *judged, "--format", "json", "-m", "nDCG@10", "-m", "P@1")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (data["title"], data["queries"], data["judged"], data["batch_size"]) == ("fruit", 4, 3, 1)
    (system,) = data["systems"]
    assert system["name"] == "my fruit"
    search, rerank = system["stages"]
    assert (search["stage"], search["hits"], rerank["stage"], rerank["hits"]) == ("listed_search", 4, "word_overlap", 3)
    assert search["measures"]["P@1"] == pytest.approx(1 / 3)
    assert rerank["measures"]["P@1"] == 1
    assert [found["stage"] for found in data["comparisons"]] == ["word_overlap", "word_overlap"]
    assert done.stderr.splitlines() == ["warning: 1 of 4 queries have no judgements, and were left out"]


def test_the_table_of_one_system(invoke, fruit, judged):
    """Each stage with its measures, what a perfect order would give, and the times; then what the signs mean."""
    done = invoke("evaluate", fruit, *judged, "-m", "P@1", "--test", "permutation", env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "fruit  3 judged queries, one at a time"
    assert lines[2].split() == ["stage", "hits", "P@1", "change", "ceiling", "p50", "ms", "p95", "p99", "elapsed", "ms"]
    assert lines[4].split()[:4] == ["listed_search", "4", "0.333", "1.000"]
    assert lines[5].split()[:5] == ["word_overlap", "3", "1.000", "+0.667", "1.000"]
    signs = "* where p < 0.05 (paired permutation test, p-values corrected by Holm's method, 3 queries)."
    assert signs in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_keep_to_the_width(invoke, swept, judged, width):
    """No line is longer than the terminal is wide, and no figure is cut."""
    done = invoke("evaluate", swept, *judged, "-m", "nDCG@10", "-m", "R@100", env={"COLUMNS": str(width)})
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "…" not in done.stdout
    assert "All 6 systems" in done.stdout


def test_a_sweep_is_evaluated_variant_by_variant(invoke, swept, judged):
    """Every variant is a system, the unchanged pipeline the first one."""
    done = invoke("evaluate", swept, *judged, "--format", "json", "-m", "P@1")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert [system["name"] for system in data["systems"]] == SWEPT
    bad = system_of(data, "word_overlap=word_overlap weight=-1 first_only=first_only")
    assert bad["variant"]["word_overlap.weight"] == -1
    assert bad["variant"]["first_only"] == {"type": "first_only"}
    assert bad["stages"][1]["measures"]["P@1"] < 1
    table = invoke("evaluate", swept, *judged, "-m", "P@1", env={"COLUMNS": "160"}).stdout
    assert f"{SWEPT[0]} (baseline)" in table
    assert "Stages of the other 5 systems" in table or "Stages of the other 4 systems" in table


def test_several_configurations_side_by_side(invoke, fruit, swept, judged, make):
    """Systems have the names of their pipelines, or of their files if two pipelines have the same name."""
    done = invoke("evaluate", fruit, swept, *judged, "--format", "json")
    names = [system["name"] for system in json.loads(done.stdout)["systems"]]
    assert names == ["my fruit", *(f"swept fruit {name}" for name in SWEPT)]
    other = make("other.yaml", fruit.read_text().replace("top_k: 3", "top_k: 1"))
    done = invoke("evaluate", fruit, other, fruit, *judged, "--format", "json")
    assert [system["name"] for system in json.loads(done.stdout)["systems"]] == ["fruit", "other"]
    assert json.loads(done.stdout)["systems"][0]["stages"][0]["shared"] is True


def test_the_baseline_can_be_chosen(invoke, swept, judged):
    """The chosen baseline comes first, and the others are compared with it."""
    done = invoke("evaluate", swept, *judged, "--format", "json", "-m", "P@1", "--baseline", SWEPT[4])
    data = json.loads(done.stdout)
    assert [system["name"] for system in data["systems"]] == [SWEPT[4], *SWEPT[:4], SWEPT[5]]
    assert {found["baseline_system"] for found in data["comparisons"] if found["system"] == SWEPT[0]} == {
        SWEPT[0],
        SWEPT[4],
    }
    done = invoke("evaluate", swept, *judged, "--baseline", "word_overlap=none first_only=first_onyl")
    assert done.exit_code == 2
    assert "did you mean 'word_overlap=none first_only=first_only'?" in done.stderr


def test_csv_has_a_row_for_each_stage_of_each_system(invoke, swept, judged):
    """Columns are the same in all rows; those with `final` true are a table of the systems."""
    done = invoke("evaluate", swept, *judged, "--format", "csv", "-m", "P@1")
    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["system"] for row in rows if row["final"] == "True"] == SWEPT
    assert len(rows) == 3 + 2 + 3 + 2 + 2 + 1
    first = rows[2]
    assert (first["word_overlap.weight"], first["stage"], first["type"]) == ("1", "first_only", "first_only")
    assert json.loads(first["first_only"]) == {"type": "first_only"}
    assert (first["position"], first["hits"], first["queries"]) == ("3", "1.0", "3")
    assert (first["P@1"], first["P@1 ceiling"], first["P@1 against baseline"]) == ("1.0", "1.0", "")
    other = rows[7]
    assert (other["system"], other["final"], other["position"]) == (SWEPT[2], "True", "3")
    assert float(other["P@1 against baseline"]) == float(other["P@1"]) - 1
    assert 0 <= float(other["P@1 against baseline p"]) <= 1
    assert float(other["elapsed_p50_seconds"]) >= float(other["latency_p50_seconds"])


def test_outputs_are_chosen_by_their_names(invoke, fruit, judged, tmp_path):
    """A name with .json or .csv selects the format, any other a table; stderr says what was written."""
    for name, begin in (("out.json", "{"), ("out.csv", "system,"), ("out.txt", "fruit  3 judged queries")):
        done = invoke("evaluate", fruit, *judged, "-o", tmp_path / name)
        assert (done.exit_code, done.stdout) == (0, "")
        assert (tmp_path / name).read_text().startswith(begin)
        assert f"written: {tmp_path / name}" in done.stderr


def test_the_report_is_written_beside_the_figures(invoke, swept, judged, tmp_path):
    """The report is one HTML file that names every variant."""
    done = invoke("evaluate", swept, *judged, "--report", tmp_path / "report.html")
    assert done.exit_code == 0, done.stderr
    html = (tmp_path / "report.html").read_text()
    assert html.startswith("<!DOCTYPE html>")
    assert all(name in html for name in SWEPT)
    assert "All 6 systems" in done.stdout


def test_figures_that_the_file_cannot_take_go_to_stdout(invoke, fruit, judged, tmp_path):
    """The figures are printed instead, the report is written, and the exit code is 1."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no device here that is always full")
    done = invoke(
        "evaluate", fruit, *judged, "--format", "json", "-o", full, "--report", tmp_path / "r.html", "--overwrite"
    )
    assert done.exit_code == 1
    assert "error: /dev/full: cannot be written: No space left on device" in done.stderr
    assert "written: /dev/full" not in done.stderr
    assert json.loads(done.stdout)["judged"] == 3
    assert (tmp_path / "r.html").exists()


def test_a_failed_query_is_reported_and_ends_with_1(invoke, make, judged, tmp_path):
    """A failed query counts as 0 in the measures, and the figures are still written."""
    config = make("a.yaml", "name: a\nstages:\n - {type: listed_search}\n - {type: faulty, how: word, word: plum}\n")
    done = invoke("evaluate", config, *judged, "-o", tmp_path / "out.json", "--runs", tmp_path / "runs")
    assert done.exit_code == 1
    assert "warning: a: 1 of 3 queries failed (query: 1) and count as having found nothing" in done.stderr
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["systems"][0]["statuses"] == {"ok": 2, "failed": 1}
    assert {line.split()[0] for line in (tmp_path / "runs" / "a.run").read_text().splitlines()} == {"b", "c"}


def test_a_bad_line_of_queries_is_a_failed_query(invoke, fruit, make):
    """The message has the number of the line, and other queries are not affected."""
    queries = make("queries.jsonl", '{"_id": "a", "text": "red plum"}\n{"_id": "b", "txt": "blue"}\n')
    done = invoke("evaluate", fruit, "--queries", queries, "--qrels", make("qrels.tsv", QRELS))
    assert done.exit_code == 1
    assert "queries.jsonl:2: has neither `text` nor `vector`" in done.stderr


def test_queries_from_stdin(invoke, fruit, make):
    """Stdin is read as lines, whose ids are their positions."""
    qrels = make("qrels.txt", "1 0 1 1\n2 0 2 1\n")
    done = invoke("evaluate", fruit, "--queries", "-", "--qrels", qrels, "--format", "json", input="red plum\nblue\n")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["judged"] == 2


def test_the_timeout_holds_for_each_batch(invoke, make, judged):
    """A pipeline that takes longer fails with the reason deadline."""
    stages = " - {type: listed_search}\n - {type: slow, seconds: 0.1}\n - {type: word_overlap}\n"
    config = make("slow.yaml", f"name: a\nstages:\n{stages}")
    done = invoke("evaluate", config, *judged, "--timeout", "0.05")
    assert done.exit_code == 1
    assert "all of 3 queries failed (deadline: 3)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "nDGC@10"], "error: measures: ir-measures cannot compute 'nDGC@10' here"),
        (["--price", "cohere.units"], "error: --price cohere.units: must be STAGE.WORD=AMOUNT"),
        (["--price", "cohere=1"], "error: prices: cohere: must name a stage and a word of its usage"),
        (["--price", "cohere.units=nan"], "error: prices: cohere.units: must be a number of at least 0, got nan"),
        (["-o", "{tmp}/no/out.json"], "no/out.json: the folder {tmp}/no does not exist; create it first"),
        (["--report", "{tmp}"], "error: {tmp}: is a folder; give the name of a file in it"),
        (["-o", "{tmp}/x.html", "--report", "{tmp}/x.html"], "--report {tmp}/x.html: is also the file of --output"),
        (["-o", "{tmp}/old.txt"], "error: {tmp}/old.txt: already exists; choose another file, or pass --overwrite"),
        (
            ["-o", "{tmp}/qrels.tsv", "--overwrite"],
            "error: {tmp}/qrels.tsv: is one of the files that are read; write to another file",
        ),
        (["--runs", "{tmp}/qrels.tsv"], "error: --runs {tmp}/qrels.tsv: is a file; name a folder"),
        (["--runs", "{tmp}/no/runs"], "error: --runs {tmp}/no/runs: the folder {tmp}/no does not exist"),
        (["--batch-size", "0"], "--batch-size"),
        (["--test", "wilcoxon"], "--test"),
    ],
)
def test_wrong_options_are_reported_before_anything_is_opened(invoke, make, judged, tmp_path, arguments, message):
    """The command ends with 2; a stage that cannot be opened was not tried."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, how: setup}\n")
    make("old.txt", "precious")
    done = invoke("evaluate", config, *judged, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert done.exit_code == 2
    assert message.replace("{tmp}", str(tmp_path)) in done.stderr
    assert "cannot be opened" not in done.stderr
    assert (tmp_path / "qrels.tsv").read_text() == QRELS


def test_wrong_files_are_reported_before_anything_is_opened(invoke, make, tmp_path):
    """Judgements that cannot be read or belong to other queries, and a sweep that is wrong."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, how: setup}\n")
    queries, qrels = make("queries.jsonl", QUERIES), make("qrels.tsv", QRELS)
    done = invoke("evaluate", config, "--queries", queries, "--qrels", tmp_path / "none.tsv")
    assert (done.exit_code, "none.tsv" in done.stderr) == (2, True)
    done = invoke("evaluate", config, "--queries", queries, "--qrels", make("other.txt", "x 0 1 1\n"))
    assert (done.exit_code, "none of the 4 queries has judgements" in done.stderr) == (2, True)
    done = invoke("evaluate", config, "--queries", "-", "--qrels", "-", input="")
    assert (done.exit_code, "--queries and --qrels: cannot both be stdin" in done.stderr) == (2, True)
    bad = make("bad.yaml", SWEEP.replace("weight: [1, -1]", "wieght: [1]"))
    done = invoke("evaluate", config, bad, "--queries", queries, "--qrels", qrels)
    assert done.exit_code == 2
    assert done.stderr == (f"error: {bad}: sweep.word_overlap.wieght: unknown key; did you mean 'weight'? (line 8)\n")


@pytest.mark.parametrize("module", ["ir_measures", "scipy.stats", "statsmodels.stats.multitest", "jinja2"])
def test_a_missing_package_is_reported_before_anything_is_opened(invoke, make, judged, tmp_path, monkeypatch, module):
    """A missing package is reported with its pip command, even if it is needed only at the end."""
    monkeypatch.setitem(sys.modules, module, None)
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, how: setup}\n")
    done = invoke("evaluate", config, *judged, "--report", tmp_path / "report.html")
    assert done.exit_code == 1
    assert 'install it with: pip install "milvus-search-pipeline[evaluate]"' in done.stderr
    assert "cannot be opened" not in done.stderr


def test_runs_are_not_replaced_unasked(invoke, fruit, judged, tmp_path):
    """A folder that holds runs is taken only with --overwrite, and then holds whole new ones."""
    first = invoke("evaluate", fruit, *judged, "--runs", tmp_path / "runs")
    written = (tmp_path / "runs" / "my_fruit.run").read_text()
    again = invoke("evaluate", fruit, *judged, "--runs", tmp_path / "runs")
    assert (first.exit_code, again.exit_code) == (0, 2)
    assert "already contains runs; name another folder, or pass --overwrite" in again.stderr
    assert invoke("evaluate", fruit, *judged, "--runs", tmp_path / "runs", "--overwrite").exit_code == 0
    assert (tmp_path / "runs" / "my_fruit.run").read_text() == written


def test_an_evaluation_that_ran_nothing_leaves_no_runs(invoke, fruit, judged, tmp_path):
    """What is wrong shows with the judgements only, and the next try is not refused."""
    runs = tmp_path / "runs"
    assert invoke("evaluate", fruit, *judged, "--runs", runs, "-m", "ERR@10").exit_code == 2
    assert list(runs.iterdir()) == []


def test_an_id_that_no_run_can_hold_is_reported_at_the_end(invoke, make, tmp_path):
    """The figures are printed, the query is missing in the run, and the exit code is 1."""
    config = make("fruit.yaml", "name: ü/..\nstages:\n - {type: listed_search}\n")
    queries = make("queries.jsonl", '{"_id": "a b", "text": "red"}\n{"_id": "c", "text": "blue"}\n')
    qrels = make("qrels.tsv", "query-id\tcorpus-id\tscore\na b\t1\t1\nc\t2\t1\n")
    done = invoke("evaluate", config, "--queries", queries, "--qrels", qrels, "--runs", tmp_path / "runs")
    assert done.exit_code == 1
    assert "system.run: queries are missing; the first one: the query id must be one word without blanks" in done.stderr
    assert {line.split()[0] for line in (tmp_path / "runs" / "system.run").read_text().splitlines()} == {"c"}
    assert "2 judged queries" in done.stdout


def test_validate_counts_the_variants(invoke, make, swept, fruit):
    """`validate` prints the number of variants."""
    assert (
        invoke("validate", swept).stdout == f"{swept}: ok: listed_search -> word_overlap -> first_only (6 variants)\n"
    )
    assert "variant" not in invoke("validate", fruit).stdout
    one = make("one.yaml", "stages:\n - {type: listed_search}\nsweep:\n  listed_search: [{type: listed_search}]\n")
    assert invoke("validate", one).stdout == f"{one}: ok: listed_search (1 variant)\n"


def test_prices_are_reported_with_the_usage(invoke, make, judged, tmp_path):
    """A price without usage gives a warning."""
    config = make("fruit.yaml", "name: f\nstages:\n - {type: listed_search}\n")
    done = invoke("evaluate", config, *judged, "--price", "cohere.search_units=0.002", "-o", tmp_path / "out.json")
    assert done.exit_code == 0
    assert "warning: the price of cohere.search_units matches no usage" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["systems"][0]["cost"] == 0


def test_the_document_names_every_column_of_the_csv(invoke, fruit, judged):
    """The document lists exactly the columns of the CSV."""
    table = DOC.read_text(encoding="utf-8").split("| column | what it is |")[1].split("\n\n")[0]
    header = invoke("evaluate", fruit, *judged, "--format", "csv").stdout.splitlines()[0].split(",")
    plain = {column for column in header if re.fullmatch("[a-z_]+", column) and not column.endswith("_seconds")}
    assert set(re.findall(r"`([a-z_]+)`", table)) == plain
