"""What `run` writes: TREC runs that keep the order, tables, files."""

import io
import json
from pathlib import Path

import pytest

from milvus_pipeline import Hit, Query, SearchResult, StageReport
from milvus_pipeline.cli.tables import console_on, print_result
from milvus_pipeline.text import one_line

QUERY = "who proposed it?"
FULL = Path("/dev/full")


def test_an_id_that_a_trec_run_cannot_hold(invoke, fruit, make):
    """Its query fails, and the others are written, with the pipeline's name as the tag."""
    queries = make("q.jsonl", '{"_id": "a b", "text": "red"}\n{"_id": "z", "text": "sky"}\n')
    done = invoke("run", fruit, "--queries", queries, "--format", "trec")
    assert done.exit_code == 1
    assert "the query id must be one word without blanks in a TREC run, got 'a b'" in done.stderr
    assert "z Q0 2 1 1 my_fruit" in done.stdout


def test_the_files_name_chooses_the_format(invoke, fruit, tmp_path):
    """.trec and .run are TREC runs, the rest JSONL, unless --format says otherwise."""
    for name, start in (("a.trec", "1 Q0"), ("a.run", "1 Q0"), ("a.jsonl", '{"query"'), ("a.txt", '{"query"')):
        done = invoke("run", fruit, "-q", "red", "-o", tmp_path / name)
        assert done.stdout == ""
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
        assert f"written to {tmp_path / name}" in done.stderr
    invoke("run", fruit, "-q", "red", "-o", tmp_path / "b.trec", "--format", "jsonl")
    assert json.loads((tmp_path / "b.trec").read_text(encoding="utf-8"))["status"] == "ok"


def test_a_file_is_not_overwritten_unasked(invoke, fruit, make):
    """--overwrite is the way to do it."""
    out = make("out.jsonl", "precious\n")
    done = invoke("run", fruit, "-q", "red", "-o", out)
    message = "exists already; choose another file, resume its job with --resume, or replace it with --overwrite"
    assert (done.exit_code, done.stderr) == (2, f"error: {out}: {message}\n")
    assert out.read_text(encoding="utf-8") == "precious\n"
    assert invoke("run", fruit, "-q", "red", "-o", out, "--overwrite").exit_code == 0
    assert json.loads(out.read_text(encoding="utf-8"))["query"]["text"] == "red"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no/such/out.jsonl", "does not exist; create"),
        (".", "is a folder"),
        ("q.txt", "is one of the files that are read"),
    ],
)
def test_a_place_that_cannot_be_written(invoke, make, tmp_path, place, message):
    """It is found out before any work: the configuration is not even read."""
    queries = make("q.txt", "red\n")
    done = invoke("run", tmp_path / "none.yaml", "--queries", queries, "-o", tmp_path / place, "--overwrite")
    assert done.exit_code == 2
    assert message in done.stderr
    assert queries.read_text(encoding="utf-8") == "red\n"


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("output_format", ["jsonl", "trec", "table"])
def test_a_full_disk_is_reported(invoke, fruit, make, output_format):
    """The message names the file, and no line says that the results were written to it."""
    queries = make("q.txt", "red\n" * 100)
    done = invoke("run", fruit, "--queries", queries, "-o", FULL, "--overwrite", "--format", output_format)
    assert done.exit_code == 1
    assert done.stderr.endswith(
        f"error: {FULL}: cannot be written: No space left on device; its contents are incomplete\n"
    )
    assert "written to" not in done.stderr


def table_of(result, monkeypatch, width=100):
    """The table of a result, as text."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    print_result(console_on(stream), result)
    return stream.getvalue()


def reranked():
    """Three hits that a reranker put in another order."""
    texts = {0: "low [bold]and[/bold]\x1b[31m red", 1: "the best " * 30, 2: None}
    hits = [
        Hit(place, text, 0.0).ranked("search", 1.0 - place / 10, place + 1).ranked("bge", score, rank)
        for (place, text), score, rank in zip(texts.items(), (0.25, 0.75, None), (2, 1, 3), strict=True)
    ]
    return sorted(hits, key=lambda hit: hit.ranks["bge"])


def test_a_table_shows_scores_and_movements(monkeypatch):
    """Every stage's score, how far the reranker moved the hit, and as much text as fits."""
    table = table_of(SearchResult(Query(QUERY, id="7"), reranked()), monkeypatch)
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["7", *QUERY.split()]
    assert lines[1] == ["#", "search", "bge", "moved", "id", "text"]
    assert lines[3][:6] == ["1", "0.9000", "0.7500", "↑1", "1", "the"]
    assert lines[3][-1].endswith("…")
    assert lines[4][:6] == ["2", "1.0000", "0.2500", "↓1", "0", "low"]
    assert lines[5][:5] == ["3", "0.8000", "=", "2", "(no"]
    assert all(len(line) <= 100 for line in table.splitlines())


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_narrow_table_keeps_its_scores(monkeypatch, width):
    """Texts, then headers, give way to the width of the terminal."""
    table = table_of(SearchResult(Query("q", id="7"), reranked()), monkeypatch, width)
    assert "0.9000" in table
    assert "0.7500" in table
    assert all(len(line) <= width for line in table.splitlines())


def test_documents_cannot_steer_the_terminal(monkeypatch):
    """Markup is shown as it is, control characters as a replacement sign."""
    table = table_of(SearchResult(Query("a\x07b", id="7"), reranked()), monkeypatch)
    assert "\x1b" not in table
    assert "\x07" not in table
    assert "low [bold]and[/bold]\ufffd[31m red" in table
    assert one_line("a\u202eb\x9b\n c") == "a\ufffdb\ufffd c"


@pytest.mark.parametrize("text", ["می\u200cروم", "👩\u200d👩\u200d👧 and ❤️", "co\u00adoperate", "क्\u200dष"])
def test_invisible_signs_that_a_script_needs_stay(monkeypatch, text):
    """Joiners, non-joiners and soft hyphens reach the terminal."""
    assert one_line(text) == text
    assert text in table_of(SearchResult(Query("q", id="7"), [Hit(1, text, 0.5)]), monkeypatch)


@pytest.mark.parametrize("sign", "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_signs_that_turn_the_order_of_a_text_do_not(sign):
    """With them a text could pass for another."""
    assert one_line(f"a{sign}b") == "a\ufffdb"


def test_a_table_shows_what_went_wrong(monkeypatch):
    """Times, incomplete stages, fallbacks, warnings and failures are printed below the hits."""
    reports = [
        StageReport("search", "milvus_search", 1.25, 0, 3, warnings=("only 3 of 5",), batch_size=4),
        StageReport("bge", "bge", 0.0021, 3, 3, status="skipped", reason="bge failed: no memory", batch_size=4),
        StageReport("spare", "bge", 0.1, 3, 3, "partial", "1 of 3 was not scored", "deadline", fallback_for="bge"),
    ]
    table = table_of(SearchResult(Query(QUERY, id="7"), reranked(), "degraded", reports), monkeypatch)
    assert f"{QUERY}  [degraded]" in table
    assert "spare did part of its work: 1 of 3 was not scored" in table
    assert "spare stood in for bge" in table
    assert "search 1.25s · bge 2.1ms · spare 100ms  (for 4 queries together)" in table
    assert "bge was skipped: bge failed: no memory" in table
    assert "warning: search: only 3 of 5" in table
    failed = table_of(SearchResult(Query("", id="8"), status="failed", error=ValueError("is empty")), monkeypatch)
    assert "(no text)  [failed]" in failed
    assert "failed: is empty" in failed
    assert "no hits" in table_of(SearchResult(Query("q", id="9")), monkeypatch)
