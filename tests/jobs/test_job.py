"""`run_job`: queries from a file or an iterable, reproducible lines, and a report."""

import gzip
import hashlib
import json
import os
import sys

import pytest

from milvus_pipeline import (
    JobProgress,
    Pipeline,
    PipelineError,
    Query,
    StoppedError,
    manifest_path,
    read_manifest,
    run_job,
)
from support.fake_stages import basic, paid

QUERIES = ["red plum", "sky", " ", "blue", "pear"]


def fruit(*more, **fields):
    """Return a pipeline that searches four texts and reranks them by the words they share with the query."""
    return Pipeline([basic.ListedSearch(), basic.WordOverlap(top_k=2), *more], **fields)


def lines_of(path):
    """Return the JSON objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_query_has_one_line_in_order(tmp_path):
    """Each query has a line, failed ones with their error; a missing id is the query's place."""
    out = tmp_path / "out.jsonl"
    report = run_job(fruit(), [*QUERIES, Query("apple", id="x")], out, batch_size=2)
    lines = lines_of(out)
    assert [line["query"]["id"] for line in lines] == ["1", "2", "3", "4", "5", "x"]
    assert [line["status"] for line in lines] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert "is empty" in lines[2]["error"]
    assert (report.output, report.manifest) == (out, manifest_path(out))
    assert (report.queries, report.before, report.failed) == (6, 0, 1)
    assert report.figures.status == {"ok": 5, "failed": 1}
    assert report.figures.reasons == {"query": 1}


def test_the_same_job_writes_the_same_bytes(tmp_path):
    """Lines contain what differs from run to run only with figures."""
    written = []
    for name in ("a.jsonl", "b.jsonl"):
        run_job(fruit(), QUERIES, tmp_path / name, batch_size=2)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert b'"seconds"' not in written[0]
    run_job(fruit(), QUERIES, tmp_path / "c.jsonl", figures=True)
    assert all("seconds" in report for report in lines_of(tmp_path / "c.jsonl")[0]["reports"])


def test_results_are_those_of_the_pipeline(tmp_path):
    """A line is `to_dict` of the result of `run_batch` for its batch."""
    pipeline = fruit(basic.Faulty(how="word", word="plum"))
    run_job(pipeline, QUERIES, tmp_path / "out.jsonl", batch_size=3)
    queries = [Query(text, id=str(place)) for place, text in enumerate(QUERIES, start=1)]
    found = [result for batch in (queries[:3], queries[3:]) for result in pipeline.run_batch(batch, return_errors=True)]
    assert lines_of(tmp_path / "out.jsonl") == [result.to_dict(figures=False) for result in found]


@pytest.mark.parametrize("name", ["out.jsonl", "out.trec"])
def test_gzip_is_the_same_text_in_members(tmp_path, name):
    """A name in .gz gives the same text in gzip members; an output without lines is a gzip file, too."""
    plain, packed, empty = tmp_path / name, tmp_path / f"{name}.gz", tmp_path / "none.run.gz"
    run_job(fruit(), QUERIES, plain, batch_size=2)
    run_job(fruit(), QUERIES, packed, batch_size=2)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.read_bytes().count(b"\x1f\x8b\x08") == 3
    run_job(fruit(), [" "], empty)
    assert gzip.decompress(empty.read_bytes()) == b""


def test_a_trec_run_counts_what_it_cannot_hold(tmp_path):
    """In a TREC run failed queries have no line and a repeated id fails; the report counts both."""
    out = tmp_path / "out.trec"
    queries = [Query("red", id="a"), Query(" ", id="b"), Query("sky", id="a")]
    seen = []
    report = run_job(fruit(), queries, out, on_result=lambda result, error: seen.append((result.query.text, error)))
    assert [line.split()[0] for line in out.read_text(encoding="utf-8").splitlines()] == ["a", "a"]
    assert report.figures.status == {"ok": 1, "failed": 2}
    assert [error is None for _, error in seen] == [True, True, False]
    assert "duplicate" in str(seen[2][1])


def test_progress_is_reported_after_each_batch(tmp_path):
    """Progress is reported when the pipeline is open, then with the number of queries done and failed."""
    seen = []
    run_job(fruit(), QUERIES, tmp_path / "out.jsonl", batch_size=2, on_progress=seen.append)
    assert all(isinstance(done, JobProgress) for done in seen)
    assert [(done.queries, done.before, done.failed) for done in seen] == [(0, 0, 0), (2, 0, 0), (4, 0, 1), (5, 0, 1)]


def test_the_manifest_describes_the_job(tmp_path):
    """The manifest has configuration, versions, digests, and sums of statuses and usage."""
    pipeline = Pipeline([basic.ListedSearch(), basic.Slow(seconds=0.01), paid.Paid(refused="plum")], timeout=60)
    out = tmp_path / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAID_API_KEY", "a-key")
        run_job(pipeline, QUERIES, out, batch_size=2)
    manifest = read_manifest(manifest_path(out))
    assert manifest.state == "complete"
    assert manifest.config == pipeline.to_config()
    assert manifest.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"milvus-search-pipeline", "pymilvus", "numpy"} <= set(manifest.versions)
    assert manifest.output.model_dump() == {"path": str(out), "format": "jsonl", "gzip": False}
    assert manifest.options.model_dump() == {"batch_size": 2, "timeout": None, "bad_lines": "report", "figures": False}
    assert manifest.times.began <= manifest.times.ended == manifest.times.written
    assert manifest.progress.queries == 5
    assert manifest.progress.bytes == out.stat().st_size
    assert manifest.progress.output_sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    figures = manifest.figures
    assert (figures.status, figures.reasons) == ({"ok": 3, "failed": 2}, {"query": 2})
    assert figures.stages["paid"].usage == {"requests": 8, "documents": 16, "units": 8.0}
    assert figures.stages["paid"].queries == figures.stages["slow"].queries == 4
    assert figures.stages["slow"].seconds >= 0.03
    assert figures.rate == pytest.approx(5 / figures.seconds, rel=0.2)
    assert manifest_path(out).stat().st_mode == out.stat().st_mode
    assert b"a-key" not in manifest_path(out).read_bytes()


def test_the_umask_holds_for_output_and_manifest(tmp_path):
    """Output and manifest have the permissions of any new file."""
    before = os.umask(0o077)
    try:
        run_job(fruit(), QUERIES, tmp_path / "out.jsonl")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o600, 0o600]


def test_memory_does_not_grow_with_the_queries(tmp_path):
    """The interpreter has about as many memory blocks after 20,000 queries as after 4,000."""
    blocks = {}

    def note(done):
        blocks[done.queries] = sys.getallocatedblocks()

    queries = (f"red {number}" if number % 9 else "" for number in range(20_000))
    run_job(fruit(), queries, tmp_path / "out.jsonl", batch_size=50, on_progress=note)
    early = max(count for queries, count in blocks.items() if 2_000 <= queries <= 4_000)
    late = max(count for queries, count in blocks.items() if queries >= 18_000)
    assert late - early < 8_000  # half a block for each query between; the batches under way take some thousands


def test_a_failure_stops_the_job_on_request(tmp_path):
    """The batch of the failed query is not written, and the job can be resumed as if nothing had happened."""
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    queries = ["red", "", "sky", "red plum", "blue"]
    stage = basic.Faulty(how="word", word="plum")
    with pytest.raises(StoppedError, match=r"query 4: .*cannot be looked up") as caught:
        run_job(fruit(stage), queries, out, batch_size=2, stop_on_failure=True)
    assert "2 queries done" in str(caught.value)
    assert [line["status"] for line in lines_of(out)] == ["ok", "failed"]  # an empty query fails in no stage
    assert read_manifest(manifest_path(out)).state == "failed"
    run_job(fruit(stage), queries, out, batch_size=2, resume=True)
    run_job(fruit(stage), queries, whole, batch_size=2)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bad_lines": "ignore"}, "options.bad_lines: must be 'report', 'skip' or 'fatal', got 'ignore'"),
        ({"output_format": "csv"}, "output.format: must be 'jsonl' or 'trec', got 'csv'"),
        ({"input_format": "xml"}, "input.format: must be 'lines', 'jsonl' or 'tsv', got 'xml'"),
        ({"batch_size": 0}, "options.batch_size: must be at least 1, got 0"),
        ({"batch_size": True}, "options.batch_size: must be a whole number, got True"),
        ({"batch_size": 2.5}, "options.batch_size: must be a whole number, got 2.5"),
        ({"queries": []}, "the iterable: no queries given"),
        ({"timeout": "soon"}, "timeout: must be a number of seconds, got 'soon'"),
    ],
)
def test_a_wrong_parameter_is_refused(tmp_path, given, message):
    """A wrong parameter is refused by name, and nothing is opened or created."""
    unopened = Pipeline([basic.ListedSearch(), basic.Faulty(how="setup")])
    with pytest.raises(PipelineError) as caught:
        run_job(unopened, **{"queries": QUERIES, "output": tmp_path / "out.jsonl", **given})
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_the_pipeline_is_left_open(tmp_path):
    """The pipeline stays open, so that several jobs can share what it has loaded."""
    pipeline = fruit()
    with pipeline:
        run_job(pipeline, QUERIES, tmp_path / "a.jsonl")
        assert pipeline.stages[0].is_open
    assert not pipeline.stages[0].is_open


def test_the_first_batch_is_committed_at_once(tmp_path):
    """A job that is killed right after its first batch does not start again."""
    out = tmp_path / "out.jsonl"
    committed = []
    run_job(
        Pipeline([basic.ListedSearch()]),
        ["red"] * 8,
        out,
        batch_size=2,
        on_progress=lambda progress: committed.append(read_manifest(manifest_path(out)).progress.queries),
    )
    assert committed[:2] == [0, 2]
    assert read_manifest(manifest_path(out)).progress.queries == 8
