"""What hosted stages cost, and with `--dry-run` what they would: on stderr, below a table, as JSON lines."""

import contextlib
import json
import os
import subprocess

import pytest

from milvus_pipeline.text import figures_text
from support.fake_stages import paid
from support.processes import interrupted

PAID = """\
name: papers
stages:
  - {type: listed_search}
  - {type: paid, top_k: 3}
  - {type: paid, name: second, refused: plum}
"""
TABLE = """\
stage    type   requests   documents   est. tokens   tokens a query
───────────────────────────────────────────────────────────────────
paid     paid          4           8            26               13
second   paid          4           6            24               12

3 queries, 1 failed; nothing was sent to these services
tokens are estimates: every service counts with its own tokenizer
"""


@pytest.fixture
def config(make):
    """Two stages that cost; the second refuses a word."""
    return make("paid.yaml", PAID)


@pytest.fixture
def key(monkeypatch):
    """The key of the service, which is set."""
    monkeypatch.setenv("PAID_API_KEY", "a-key")


@pytest.fixture
def no_key(monkeypatch):
    """The key of the service is not set."""
    monkeypatch.delenv("PAID_API_KEY", raising=False)


@pytest.fixture
def installed(environment, tmp_path):
    """What to add to the environment of a process, so that it has the stage as a plugin, and its key."""
    folder = tmp_path / "paid-site" / "paid-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: paid\nVersion: 1.0\n", encoding="utf-8")
    points = f"[milvus_pipeline.stages]\npaid = {paid.__name__}:Paid\n"
    (folder / "entry_points.txt").write_text(points, encoding="utf-8")
    path = os.pathsep.join([environment["PYTHONPATH"], str(folder.parent)])
    return {"PYTHONPATH": path, "PAID_API_KEY": "a-key"}


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"requests": 225, "search_units": 225}, "225 requests, 225 search units"),
        ({"total_tokens": 48210, "retries": 1, "requests": 12}, "12 requests, 1 retry, 48,210 total tokens"),
        ({"requests": 1, "search_units": 1.0, "retries": 0}, "1 request, 1 search unit"),
        ({"requests": 2, "retries": 3}, "2 requests, 3 retries"),
        ({"dollars": 1234.567, "cents": 0.25}, "1,234.57 dollars, 0.25 cents"),
        ({"requests": 0}, "0 requests"),
    ],
)
def test_figures_read_as_words(figures, said):
    """Common words come first, thousands are separated, one is singular, and zeros are left out."""
    assert figures_text(figures) == said


def test_a_run_ends_with_what_it_cost(invoke, config, key):
    """A line a stage on stderr, with the queries that failed; the data on stdout carry each query's own."""
    done = invoke("run", config, "-q", "red", "-q", "plum", "-q", "  ", "--batch-size", "1")
    assert done.exit_code == 1
    assert done.stderr.endswith("paid: 4 requests, 8 documents, 4 units\nsecond: 4 requests, 6 documents, 4 units\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["status"] for line in lines] == ["ok", "failed", "failed"]
    assert lines[1]["reports"][2]["details"]["usage"] == {"requests": 2, "documents": 3, "units": 2.0}


def test_a_table_shows_what_its_query_cost(invoke, config, key, monkeypatch):
    """On a line below the times."""
    monkeypatch.setenv("COLUMNS", "120")
    done = invoke("run", config, "-q", "red", "--format", "table")
    times, cost = done.stdout.rstrip().splitlines()[-2:]
    assert times.strip().startswith("listed_search ")
    assert cost.strip() == "paid 2 requests, 4 documents, 2 units · second 2 requests, 3 documents, 2 units"


@pytest.mark.parametrize(("queries", "count"), [(["red"], 1), (["red", "blue"], 3)])
def test_a_terminal_is_reported_once_what_one_query_cost(start, config, installed, queries, count):
    """Below its table; the sum at the end is for several, and for those who read the table elsewhere."""
    screen, end = os.openpty()
    asked = [part for query in queries for part in ("-q", query)]
    process = start("run", config, *asked, stdout=end, env={**installed, "COLUMNS": "120"})
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while part := os.read(screen, 65536):
            shown += part
    os.close(screen)
    said = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0
    assert (shown.decode() + said).count("units") == 2 * count
    assert ("paid: " in said) == (len(queries) > 1)


def test_an_interrupted_run_shows_what_it_cost(start, config, installed):
    """A batch is answered before the next is read; its usage is printed, with the note that there may be more."""
    process = start("run", config, "--batch-size", "1", stdin=subprocess.PIPE, env=installed)
    process.stdin.write(b"red\nblue\n")
    process.stdin.flush()
    answered = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [line["query"]["text"] for line in answered] == ["red", "blue"]
    assert interrupted(process) == 130
    said = process.stderr.read().decode()
    assert "2 queries" in said
    assert "Traceback" not in said
    assert "\npaid: 4 requests, 8 documents, 4 units; queries in progress are not counted\n" in said
    assert said.endswith("interrupted\n")


# -- dry run -----------------------------------------------------------------------------------------------------


def test_a_dry_run_is_a_table(invoke, config, no_key):
    """Without a key it says what each service would be sent; queries fail, and the command ends, as in a run."""
    done = invoke("run", config, "-q", "red", "-q", "plum", "-q", "  ", "--dry-run")
    assert done.exit_code == 1
    assert done.stdout == TABLE
    assert "error: query 3: query '3': is empty; give it a text" in done.stderr
    assert "papers (dry run): opened in " in done.stderr
    assert "3 queries in " in done.stderr


def test_a_dry_run_as_plain_data(invoke, config, make, no_key):
    """A line a service, with the sums over a file of any length."""
    queries = make("queries.txt", "red\nblue\n" * 1000)
    done = invoke("run", config, "--queries", queries, "--dry-run", "--format", "jsonl")
    assert done.exit_code == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {
            "stage": stage,
            "type": "paid",
            "queries": 2000,
            "planned": {"requests": 4000, "documents": 2000 * documents, "tokens": 2000 * tokens},
        }
        for stage, documents, tokens in (("paid", 4, 13), ("second", 3, 12))
    ]


def test_a_query_that_would_send_nothing_is_none_of_a_service(invoke, make):
    """If no hit has a text, the row of the service has only zeros."""
    config = make("a.yaml", "stages:\n - {type: listed_search, documents: [null]}\n - {type: paid}\n")
    done = invoke("run", config, "-q", "red", "--dry-run", "--format", "jsonl")
    assert json.loads(done.stdout) == {
        "stage": "paid",
        "type": "paid",
        "queries": 0,
        "planned": {"requests": 0, "documents": 0, "tokens": 0},
    }
    assert "1 of 1 hits have no text" in done.stderr
    assert invoke("run", config, "-q", "red", "--dry-run").exit_code == 0


def test_a_dry_run_shows_equal_warnings_once(invoke, make, no_key):
    """With the number of queries, so that they do not crowd out why a query failed."""
    cut = "{type: truncate, min_score: 0.5, score_of: paid}"
    config = make("a.yaml", PAID.replace("  - {type: paid, name", f"  - {cut}\n  - {{type: paid, name"))
    done = invoke("run", config, "--queries", make("queries.txt", "red\n" * 30), "-q", " ", "--dry-run")
    error, warning, summary = done.stderr.splitlines()
    assert error.startswith("error: query 1: query '1': is empty")
    assert warning == (
        "warning: 30 queries: truncate: no hit carries a score by 'paid', so min_score 0.5 was not applied"
    )
    assert summary.startswith("papers (dry run): ")


def test_a_dry_run_writes_no_results(invoke, config, make, tmp_path):
    """The file of the job that will be run is checked as for the job, and neither made nor changed."""
    out = tmp_path / "out.trec"
    done = invoke("run", config, "-q", "red", "-o", out, "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.startswith("stage ")
    assert done.stderr.endswith(f"{out}: not written, because a dry run has no results\n")
    assert [path.name for path in tmp_path.iterdir()] == ["paid.yaml"]
    done = invoke("run", config, "-q", "red", "-o", make("old.trec", "precious\n"), "--dry-run")
    assert done.exit_code == 2
    assert "exists already; choose another file" in done.stderr


def test_a_dry_run_is_no_trec_run(invoke, config):
    """Asked for by name it is an error of usage; the name of a file that is not written says nothing."""
    done = invoke("run", config, "-q", "red", "--dry-run", "--format", "trec")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == ("error: --format: a dry run has no results to write as trec; use table or jsonl\n")


def test_a_dry_run_of_what_sends_nothing(invoke, make):
    """A message says so, and nothing is opened."""
    config = make("a.yaml", "name: my own\nstages:\n - {type: listed_search}\n - {type: faulty, how: setup}\n")
    done = invoke("run", config, "-q", "red", "--dry-run")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == ("my own: has no hosted reranker whose requests can be counted; nothing was run\n")


def test_a_dry_run_ends_as_a_run_does(invoke, make, config):
    """A stage that cannot be opened gives exit code 1, a late query fails, and a lack of queries is a usage error."""
    stages = "stages:\n - {type: listed_search}\n - {type: %s}\n - {type: paid}\n"
    done = invoke("run", make("a.yaml", stages % "faulty, how: setup"), "-q", "red", "--dry-run")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: pipeline: stages[1] (faulty): cannot be opened: OSError: no such device\n"
    done = invoke("run", make("b.yaml", stages % "slow, seconds: 0.05"), "-q", "red", "--dry-run", "--timeout", "0.01")
    assert done.exit_code == 1
    assert "timed out after 0.01 s" in done.stderr
    assert "1 query, 1 failed; nothing was sent" in done.stdout
    assert invoke("run", config, "--queries", make("none.txt", ""), "--dry-run").exit_code == 2


def test_an_interrupted_dry_run_has_no_table(start, config, installed):
    """Half of a job is no answer to what it would send; what was gone through is counted on stderr."""
    arguments = ["--dry-run", "--batch-size", "1", "--input-format", "jsonl"]
    process = start("run", config, *arguments, stdin=subprocess.PIPE, env=installed)
    process.stdin.write(b'{"text": "red"}\n{"text": "blue", "filer": "x"}\n')
    process.stdin.flush()
    assert b"the key 'filer' is not used" in process.stderr.readline()  # so the query before it was gone through
    assert interrupted(process) == 130
    assert process.stdout.read() == b""
    said = process.stderr.read().decode()
    assert said.startswith("papers (dry run): opened in ")
    assert said.endswith("interrupted\n")
