"""What a job that is resumed finds, and what it is refused for: with what differs, and before anything is changed."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from milvus_pipeline import (
    InputError,
    OutputError,
    Pipeline,
    Query,
    ResumeError,
    SearchResult,
    StageError,
    manifest_path,
    read_manifest,
    run_job,
)
from milvus_pipeline.plugin import Stage
from support.fake_stages import basic
from support.processes import in_its_own_process

QUERIES = [f"red pear {number}" for number in range(10)]
BATCH = 4


class Dated(Stage):
    """Works with something that has a number of rows and a revision."""

    rows: int = 100
    identity_fails: bool = False

    type = "dated"

    def identity(self):
        if self.identity_fails:
            raise StageError("the server does not say")
        return {"rows": Dated.now.get("rows", 100), "revision": "abc", "schema": ["id", "text"]}

    def process(self, results, context):
        return results


Dated.now = {}


def fruit(**fields):
    """Searches four texts and reranks them by the words they share with the query."""
    return Pipeline([basic.ListedSearch(), Dated(), basic.WordOverlap(**{"top_k": 2, **fields})])


def interrupt(done):
    """Ctrl-C when eight queries are done."""
    if done.queries == 8:
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def same_rows():
    """What a test changes is as it was in the next one."""
    yield
    Dated.now = {}


@pytest.fixture
def whole(tmp_path):
    """The bytes of a job that was left alone."""
    run_job(fruit(), QUERIES, tmp_path / "whole.jsonl", batch_size=BATCH)
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.fixture
def half(tmp_path):
    """The output of a job that was interrupted after eight of its ten queries."""
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_job(fruit(), QUERIES, out, batch_size=BATCH, on_progress=interrupt)
    return out


def resumed(out, pipeline=None, queries=QUERIES, **options):
    """The report of the job gone on with."""
    return run_job(pipeline or fruit(), queries, out, **{"batch_size": BATCH, "resume": True, **options})


def snapshot(folder):
    """What every file of a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_interrupt_ends_at_a_commit_point(half, whole):
    """What is written is whole batches, and the manifest says so; the rest is done by the resumption."""
    manifest = read_manifest(manifest_path(half))
    assert manifest.state == "interrupted"
    assert manifest.progress.queries == 8
    assert half.read_bytes() == whole[: manifest.progress.bytes]
    report = resumed(half)
    assert half.read_bytes() == whole
    assert (report.queries, report.before) == (10, 8)
    manifest = read_manifest(manifest_path(half))
    assert (manifest.state, manifest.resumptions, manifest.changes) == ("complete", 1, [])
    assert manifest.figures.status == {"ok": 10}


@pytest.mark.parametrize("name", ["out.jsonl", "out.trec", "out.trec.gz"])
def test_sums_are_of_all_runs_together(tmp_path, name):
    """A job of three runs tells what one of a single run does, but for the time it took."""
    queries = [Query(text, id=f"q{place % 9}") for place, text in enumerate([*QUERIES, "", "plum"])]
    out, alone = tmp_path / name, tmp_path / f"alone-{name}"
    for at in (6, 9):
        with pytest.raises(ZeroDivisionError):
            run_job(fruit(), _broken(queries, at), out, batch_size=BATCH, resume=True)
    resumed(out, queries=queries)
    run_job(fruit(), queries, alone, batch_size=BATCH)
    assert out.read_bytes() == alone.read_bytes()
    manifests = [read_manifest(manifest_path(path)) for path in (out, alone)]
    assert manifests[0].progress == manifests[1].progress
    assert manifests[0].figures.status == manifests[1].figures.status
    assert manifests[0].figures.reasons == manifests[1].figures.reasons
    assert manifests[0].resumptions == 2


def _broken(queries, at):
    yield from queries[:at]
    raise ZeroDivisionError


def test_a_complete_job_has_nothing_left_to_do(tmp_path, whole):
    """It is not even opened; the report is that of the job."""
    out = tmp_path / "whole.jsonl"
    before = snapshot(tmp_path)
    pipeline = fruit()
    report = resumed(out, pipeline)
    assert (report.queries, report.before, report.figures.status) == (10, 10, {"ok": 10})
    assert not pipeline.stages[0].is_open
    assert snapshot(tmp_path) == before


def test_queries_that_were_added_are_done(tmp_path, whole):
    """Also behind a complete job, whose last batch was not full: the batches are those of one job over all."""
    out, longer = tmp_path / "whole.jsonl", [*QUERIES, "plum", "sky", "blue"]
    assert read_manifest(manifest_path(out)).whole_batches.progress.queries == 8
    report = resumed(out, queries=longer)
    assert (report.queries, report.before) == (13, 8)
    run_job(fruit(), longer, tmp_path / "longer.jsonl", batch_size=BATCH)
    assert out.read_bytes() == (tmp_path / "longer.jsonl").read_bytes()
    manifests = [read_manifest(manifest_path(path)) for path in (out, tmp_path / "longer.jsonl")]
    assert manifests[0].figures.status == manifests[1].figures.status == {"ok": 13}
    assert manifests[0].whole_batches.progress == manifests[1].whole_batches.progress


def test_an_empty_gzip_job_that_gets_more_queries(tmp_path):
    """The member that stands for nothing gives way."""
    out, alone = tmp_path / "out.run.gz", tmp_path / "alone.run.gz"
    run_job(fruit(), [" "] * BATCH, out, batch_size=BATCH)
    assert gzip.decompress(out.read_bytes()) == b""
    resumed(out, queries=[*[" "] * BATCH, "red"])
    run_job(fruit(), [*[" "] * BATCH, "red"], alone, batch_size=BATCH)
    assert out.read_bytes() == alone.read_bytes()


def test_nothing_to_resume_is_begun(tmp_path, whole):
    """Nothing there, or an empty output as a kill may leave it, or a manifest of nothing without an output."""
    out = tmp_path / "out.jsonl"
    resumed(out)
    assert out.read_bytes() == whole
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    resumed(empty)
    assert empty.read_bytes() == whole
    begun = json.loads(manifest_path(out).read_text(encoding="utf-8"))
    begun["progress"]["queries"] = begun["progress"]["bytes"] = 0
    manifest_path(tmp_path / "gone.jsonl").write_text(json.dumps(begun), encoding="utf-8")
    resumed(tmp_path / "gone.jsonl")
    assert (tmp_path / "gone.jsonl").read_bytes() == whole


def test_what_is_behind_the_commit_point_is_done_again(half, whole):
    """Half a line, or anything else that a kill left there."""
    with half.open("ab") as file:
        file.write(b'{"query": {"id": "9", "te')
    resumed(half)
    assert half.read_bytes() == whole


def test_output_and_manifest_may_be_moved(half, whole, tmp_path):
    """Together, to another folder and name."""
    (tmp_path / "else").mkdir()
    moved = tmp_path / "else" / "moved.jsonl"
    shutil.move(manifest_path(half), manifest_path(moved))
    shutil.move(half, moved)
    resumed(moved)
    assert moved.read_bytes() == whole


def test_a_linked_output_is_written_where_the_link_points(tmp_path, whole):
    """The manifest stands beside the link; a link to nothing is refused."""
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    with pytest.raises(InputError, match=r"link\.jsonl: is a link to .*, which does not exist; remove the link"):
        run_job(fruit(), QUERIES, link, batch_size=BATCH)
    target.touch()
    run_job(fruit(), QUERIES, link, batch_size=BATCH, overwrite=True)
    assert target.read_bytes() == whole
    assert link.is_symlink()
    assert manifest_path(link).exists()


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "differences"),
    [
        ({"pipeline": lambda: fruit(top_k=3)}, ["stages[2].top_k: was 2, is 3"]),
        ({"pipeline": lambda: fruit(weight=0.5)}, ["stages[2].weight: was not set, is 0.5"]),
        (
            {"pipeline": lambda: Pipeline(fruit().stages[:2], name="other", timeout=5)},
            ["name: was 'pipeline', is 'other'", "stages: had 3 entries, has 2", "timeout: was not set, is 5"],
        ),
        ({"batch_size": 8}, ["options.batch_size: was 4, is 8"]),
        (
            {"timeout": 2.0, "figures": True},
            ["options.timeout: was None, is 2.0", "options.figures: was False, is True"],
        ),
        ({"bad_lines": "skip"}, ["options.bad_lines: was 'report', is 'skip'"]),
        ({"output_format": "trec"}, ["output.format: was 'jsonl', is 'trec'"]),
        ({"queries": ["red", *QUERIES[1:]]}, ["the queries have changed: the first 8 are no longer the same"]),
        ({"queries": QUERIES[:7]}, ["the queries have changed: there are only 7 of the 8 that are done"]),
    ],
)
@pytest.mark.parametrize("accept", [False, True])
def test_another_job_is_refused(half, tmp_path, changed, differences, accept):
    """Place by place, whatever is accepted; nothing is changed, and the job can still go on as it was."""
    before = snapshot(tmp_path)
    given = {key: value() if callable(value) else value for key, value in changed.items()}
    with pytest.raises(ResumeError) as caught:
        resumed(half, **given, accept_changes=accept)
    assert caught.value.differences == differences
    assert all(line in str(caught.value) for line in differences)
    assert str(half) in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("other", [{"filter": "x > 1"}, {"params": {"nprobe": 4}}, {"vector": [1.0, 2.0]}, {"id": "z"}])
def test_a_query_is_known_by_all_that_it_asks(tmp_path, other):
    """Its id, filter, parameters and vector, not its text alone; a vector may be a list or an array."""
    out = tmp_path / "out.jsonl"
    queries = [Query("red", id="1", vector=[1.0, 0.5])]
    run_job(fruit(), queries, out, batch_size=BATCH)
    assert resumed(out, queries=[Query("red", id="1", vector=np.array([1.0, 0.5], np.float32))]).before == 1
    with pytest.raises(ResumeError, match="the first 1 are no longer the same"):
        resumed(out, queries=[Query(**{"text": "red", "id": "1", "vector": [1.0, 0.5], **other})])


def test_what_only_other_commands_read_may_change(half, whole):
    """The variants that `evaluate` compares are no part of the job."""
    stages = fruit().stages
    resumed(half, Pipeline(stages, sweep={"word_overlap.weight": [1, 2]}))
    assert half.read_bytes() == whole


def test_a_collection_that_has_grown_is_refused_unless_accepted(half, tmp_path):
    """What differs is told; once accepted, it stands in the manifest, and is what the next resumption compares with."""
    before = snapshot(tmp_path)
    Dated.now = {"rows": 250}
    with pytest.raises(ResumeError, match=r"--accept-changes") as caught:
        resumed(half)
    assert caught.value.differences == ["dated.rows: was 100, is 250"]
    assert snapshot(tmp_path) == before
    told = []
    resumed(half, accept_changes=True, warn=told.append)
    assert told == [f"{half}: resumed, though this differs: dated.rows: was 100, is 250"]
    manifest = read_manifest(manifest_path(half))
    assert manifest.identity == {"dated": {"rows": 250, "revision": "abc", "schema": ["id", "text"]}}
    (change,) = manifest.changes
    assert (change.queries, change.differences) == (8, ["dated.rows: was 100, is 250"])


def test_other_versions_are_a_warning(half, whole):
    """They are told, and kept; the job goes on."""
    manifest = json.loads(manifest_path(half).read_text(encoding="utf-8"))
    manifest["versions"]["numpy"] = "1.0"
    manifest_path(half).write_text(json.dumps(manifest), encoding="utf-8")
    told = []
    resumed(half, warn=told.append)
    assert told == [f"{half}: resumed, though this differs: versions.numpy: was '1.0', is '{np.__version__}'"]
    assert half.read_bytes() == whole
    assert read_manifest(manifest_path(half)).changes[0].queries == 8


def test_an_identity_that_cannot_be_found_out_ends_it(tmp_path):
    """Before anything is written."""
    pipeline = Pipeline([basic.ListedSearch(), Dated(identity_fails=True)])
    with pytest.raises(StageError, match="the server does not say"):
        run_job(pipeline, QUERIES, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: out.write_bytes(out.read_bytes()[:100]), "is shorter than what the job has written (100 bytes of"),
        (lambda out: out.write_bytes(out.read_bytes().replace(b"red", b"RED", 1)), "was changed: its first"),
        (lambda out: out.unlink(), "is not there, though its manifest"),
        (lambda out: manifest_path(out).unlink(), "cannot be resumed, as its manifest"),
        (lambda out: manifest_path(out).write_text("{"), "is damaged, or no manifest of this version"),
        (lambda out: manifest_path(out).write_bytes(b"\0" * 500), "is damaged, or no manifest of this version"),
        (lambda out: manifest_path(out).write_text('{"manifest": 2}'), "is damaged, or no manifest of this version"),
    ],
    ids=["short", "edited", "gone", "no manifest", "half a manifest", "zeros", "newer"],
)
def test_files_that_are_not_as_the_job_left_them(half, tmp_path, damage, message):
    """The file is named, and what can be done; nothing is changed."""
    damage(half)
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as caught:
        resumed(half)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "out.jsonl"))
    assert "begin anew with --overwrite" in str(caught.value)
    assert snapshot(tmp_path) == before
    run_job(fruit(), QUERIES, half, batch_size=BATCH, overwrite=True)
    assert read_manifest(manifest_path(half)).state == "complete"


def test_a_complete_output_that_has_grown_is_refused(tmp_path, whole):
    """Someone else has written to it."""
    out = tmp_path / "whole.jsonl"
    with out.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(InputError, match=r"was changed: the job was complete with \d+ bytes"):
        resumed(out)


@pytest.mark.parametrize("resume", [False, True])
def test_one_job_at_a_time(half, resume):
    """The second is refused while the first has the file, whether it would go on or begin anew."""
    outcome = []

    def intrude(done):
        if not outcome:
            with pytest.raises(InputError, match="another job is writing it; wait for its end") as caught:
                run_job(fruit(), QUERIES, half, batch_size=BATCH, resume=resume, overwrite=not resume)
            outcome.append(caught)

    resumed(half, on_progress=intrude)
    assert outcome
    assert read_manifest(manifest_path(half)).state == "complete"


class Meddling(Stage):
    """While it opens, another job begins at the same place."""

    output: str

    type = "meddling"

    def setup(self):
        run_job(fruit(), QUERIES, self.output, batch_size=BATCH)

    def process(self, results, context):
        return results


def test_two_jobs_that_begin_together(tmp_path, whole):
    """The one that is slower to open finds the output of the other, and leaves it alone."""
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="came into being while the job was about to begin; is another one at it"):
        run_job(Pipeline([basic.ListedSearch(), Meddling(output=str(out))]), QUERIES, out)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("folder", [False, True])
def test_the_queries_are_not_written_over(tmp_path, folder):
    """Neither a file nor the one that a folder in BEIR's shape stands for, nor through a link."""
    source = tmp_path / "queries.jsonl"
    source.write_text('{"text": "red"}\n', encoding="utf-8")
    (tmp_path / "link.jsonl").symlink_to(source)
    for output in (source, tmp_path / "link.jsonl"):
        with pytest.raises(InputError, match="is the file of queries itself; write to another file"):
            run_job(fruit(), tmp_path if folder else source, output, overwrite=True)
    assert source.read_text(encoding="utf-8") == '{"text": "red"}\n'


def test_without_resume_an_unfinished_job_is_pointed_out(half):
    """And a manifest that lost its output; --overwrite begins anew, in one file at a time."""
    with pytest.raises(InputError, match=r"of a job that is not complete \(done so far: 8\); pass --resume"):
        run_job(fruit(), QUERIES, half)
    with pytest.raises(InputError, match="pass one of them"):
        run_job(fruit(), QUERIES, half, resume=True, overwrite=True)
    half.unlink()
    with pytest.raises(InputError, match=r"manifest\.json: exists already, without its output"):
        run_job(fruit(), QUERIES, half)


def test_a_job_that_cannot_be_opened_changes_nothing(half, tmp_path):
    """Neither begun anew nor gone on with."""
    before = snapshot(tmp_path)
    closed = Pipeline([basic.ListedSearch(), basic.Faulty(how="setup")])
    with pytest.raises(StageError, match="no such device"):
        run_job(closed, QUERIES, half, overwrite=True)
    assert snapshot(tmp_path) == before


def test_bad_lines_of_a_file_are_known_again(tmp_path):
    """A file with bad lines is resumed; what was told of lines that are done is not told again."""
    source, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    lines = [f'{{"text": "red {number}", "filer": 1}}' if number % 4 else "oops" for number in range(12)]
    source.write_text("\n".join(lines), encoding="utf-8")
    for how, count in (("report", 12), ("skip", 9)):
        told, again = [], []
        run_job(fruit(), source, out, batch_size=BATCH, bad_lines=how, overwrite=True, warn=told.append)
        assert read_manifest(manifest_path(out)).progress.queries == count
        with source.open("a", encoding="utf-8") as file:
            file.write('\n{"text": "sky"}')
        assert told
        report = resumed(out, queries=source, bad_lines=how, warn=again.append)
        assert report.queries == count + 1
        assert not [line for line in again if ":1:" in line or ":2:" in line]
        source.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"q\.jsonl:1"):
        run_job(fruit(), source, tmp_path / "none.jsonl", bad_lines="fatal")
    assert not (tmp_path / "none.jsonl").exists()


def write_up_to(limit, out, queries):
    """The job on a disk that has room for files of so many bytes; what it says of that goes to stdout."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run_job(fruit(), queries, Path(out), batch_size=BATCH, resume=True)
    except OutputError as error:
        sys.stdout.write(str(error))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_disk_that_is_full_ends_at_a_commit_point(tmp_path, name):
    """Half a batch is cut off again, and the job goes on once there is room."""
    out, alone = tmp_path / name, tmp_path / f"alone-{name}"
    queries = [f"red {number * 7919 % 1009}" for number in range(200)]
    run_job(fruit(), queries, alone, batch_size=BATCH)
    limit = max(4000, alone.stat().st_size // 2)
    done = in_its_own_process(__file__, "write_up_to", limit, str(out), queries)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: cannot be written: File too large; done so far: " in done.stdout
    manifest = read_manifest(manifest_path(out))
    assert manifest.state == "failed"
    assert 0 < manifest.progress.queries < 200
    assert out.stat().st_size == manifest.progress.bytes <= limit
    resumed(out, queries=queries)
    assert out.read_bytes() == alone.read_bytes()


def test_a_manifest_that_cannot_be_written_ends_it_before_any_work(tmp_path, whole):
    """No output is left that nobody could go on with; one that was there keeps what it holds."""
    out = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.manifest.json").mkdir()
    with pytest.raises(OutputError, match=r"out\.jsonl\.manifest\.json: cannot be written: Is a directory"):
        run_job(fruit(), QUERIES, out, overwrite=True)
    assert not out.exists()
    out.write_bytes(whole)
    with pytest.raises(OutputError, match="cannot be written"):
        run_job(fruit(), QUERIES, out, overwrite=True)
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(".new")) == []


def test_what_looks_at_results_may_fail(tmp_path, whole):
    """An error of the caller's own ends the job at a commit point, too."""
    out = tmp_path / "out.jsonl"

    def look(result: SearchResult, unwritten):
        if result.query.id == "6":
            raise LookupError("not found")

    with pytest.raises(LookupError):
        run_job(fruit(), QUERIES, out, batch_size=BATCH, on_result=look)
    assert read_manifest(manifest_path(out)).progress.queries == 8
    resumed(out)
    assert out.read_bytes() == whole
