"""Resuming a job: what it goes on from, and what it is refused for before anything is changed."""

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
    """Has an identity: a number of rows and a revision."""

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
    """Return a pipeline that searches four texts and reranks them by the words they share with the query."""
    return Pipeline([basic.ListedSearch(), Dated(), basic.WordOverlap(**{"top_k": 2, **fields})])


def interrupt(done):
    """Press Ctrl-C when eight queries are done."""
    if done.queries == 8:
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def same_rows():
    """Undo what a test changes."""
    yield
    Dated.now = {}


@pytest.fixture
def whole(tmp_path):
    """The bytes of a job that was not interrupted."""
    run_job(fruit(), QUERIES, tmp_path / "whole.jsonl", batch_size=BATCH)
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.fixture
def half(tmp_path):
    """The output of a job that was interrupted after eight of its ten queries."""
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_job(fruit(), QUERIES, out, batch_size=BATCH, on_progress=interrupt)
    return out


def resume(out, pipeline=None, queries=QUERIES, **options):
    """Resume the job, and return its report."""
    return run_job(pipeline or fruit(), queries, out, **{"batch_size": BATCH, "resume": True, **options})


def snapshot(folder):
    """Return the content of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_interrupt_ends_at_a_commit_point(half, whole):
    """After Ctrl-C output and manifest agree on whole batches, and the resumption does the rest."""
    manifest = read_manifest(manifest_path(half))
    assert manifest.state == "interrupted"
    assert manifest.progress.queries == 8
    assert half.read_bytes() == whole[: manifest.progress.bytes]
    report = resume(half)
    assert half.read_bytes() == whole
    assert (report.queries, report.before) == (10, 8)
    manifest = read_manifest(manifest_path(half))
    assert (manifest.state, manifest.resumptions, manifest.changes) == ("complete", 1, [])
    assert manifest.figures.status == {"ok": 10}


@pytest.mark.parametrize("name", ["out.jsonl", "out.trec", "out.trec.gz"])
def test_sums_are_of_all_runs_together(tmp_path, name):
    """A job of three runs has the sums of a job of one, except for times."""
    queries = [Query(text, id=f"q{place % 9}") for place, text in enumerate([*QUERIES, "", "plum"])]
    out, alone = tmp_path / name, tmp_path / f"alone-{name}"
    for at in (6, 9):
        with pytest.raises(ZeroDivisionError):
            run_job(fruit(), _broken(queries, at), out, batch_size=BATCH, resume=True)
    resume(out, queries=queries)
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
    """Resuming a complete job opens nothing, and returns its report."""
    out = tmp_path / "whole.jsonl"
    before = snapshot(tmp_path)
    pipeline = fruit()
    report = resume(out, pipeline)
    assert (report.queries, report.before, report.figures.status) == (10, 10, {"ok": 10})
    assert not pipeline.stages[0].is_open
    assert snapshot(tmp_path) == before


def test_queries_that_were_added_are_done(tmp_path, whole):
    """Queries added to a complete job are done, in the batches of one job over all."""
    out, longer = tmp_path / "whole.jsonl", [*QUERIES, "plum", "sky", "blue"]
    assert read_manifest(manifest_path(out)).whole_batches.progress.queries == 8
    report = resume(out, queries=longer)
    assert (report.queries, report.before) == (13, 8)
    run_job(fruit(), longer, tmp_path / "longer.jsonl", batch_size=BATCH)
    assert out.read_bytes() == (tmp_path / "longer.jsonl").read_bytes()
    manifests = [read_manifest(manifest_path(path)) for path in (out, tmp_path / "longer.jsonl")]
    assert manifests[0].figures.status == manifests[1].figures.status == {"ok": 13}
    assert manifests[0].whole_batches.progress == manifests[1].whole_batches.progress


def test_an_empty_gzip_job_that_gets_more_queries(tmp_path):
    """The empty member of a job without lines is replaced."""
    out, alone = tmp_path / "out.run.gz", tmp_path / "alone.run.gz"
    run_job(fruit(), [" "] * BATCH, out, batch_size=BATCH)
    assert gzip.decompress(out.read_bytes()) == b""
    resume(out, queries=[*[" "] * BATCH, "red"])
    run_job(fruit(), [*[" "] * BATCH, "red"], alone, batch_size=BATCH)
    assert out.read_bytes() == alone.read_bytes()


def test_nothing_to_resume_is_started(tmp_path, whole):
    """A job starts if there is nothing, an empty output, or a manifest of no queries without an output."""
    out = tmp_path / "out.jsonl"
    resume(out)
    assert out.read_bytes() == whole
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    resume(empty)
    assert empty.read_bytes() == whole
    begun = json.loads(manifest_path(out).read_text(encoding="utf-8"))
    begun["progress"]["queries"] = begun["progress"]["bytes"] = 0
    manifest_path(tmp_path / "gone.jsonl").write_text(json.dumps(begun), encoding="utf-8")
    resume(tmp_path / "gone.jsonl")
    assert (tmp_path / "gone.jsonl").read_bytes() == whole


def test_what_is_behind_the_commit_point_is_done_again(half, whole):
    """Half a line behind the commit point, as a kill leaves it, is replaced."""
    with half.open("ab") as file:
        file.write(b'{"query": {"id": "9", "te')
    resume(half)
    assert half.read_bytes() == whole


def test_output_and_manifest_may_be_moved(half, whole, tmp_path):
    """Output and manifest can be moved together, to another folder and name."""
    (tmp_path / "else").mkdir()
    moved = tmp_path / "else" / "moved.jsonl"
    shutil.move(manifest_path(half), manifest_path(moved))
    shutil.move(half, moved)
    resume(moved)
    assert moved.read_bytes() == whole


def test_a_linked_output_is_written_where_the_link_points(tmp_path, whole):
    """The manifest is next to the link; a dangling link is refused."""
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
    """Another job is refused with every difference, whatever is accepted, and nothing is changed."""
    before = snapshot(tmp_path)
    given = {key: value() if callable(value) else value for key, value in changed.items()}
    with pytest.raises(ResumeError) as caught:
        resume(half, **given, accept_changes=accept)
    assert caught.value.differences == differences
    assert all(line in str(caught.value) for line in differences)
    assert str(half) in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("other", [{"filter": "x > 1"}, {"params": {"nprobe": 4}}, {"vector": [1.0, 2.0]}, {"id": "z"}])
def test_a_query_is_recognized_by_all_its_fields(tmp_path, other):
    """A query is recognized by id, text, filter, parameters and vector; a vector may be a list or an array."""
    out = tmp_path / "out.jsonl"
    queries = [Query("red", id="1", vector=[1.0, 0.5])]
    run_job(fruit(), queries, out, batch_size=BATCH)
    assert resume(out, queries=[Query("red", id="1", vector=np.array([1.0, 0.5], np.float32))]).before == 1
    with pytest.raises(ResumeError, match="the first 1 are no longer the same"):
        resume(out, queries=[Query(**{"text": "red", "id": "1", "vector": [1.0, 0.5], **other})])


def test_sections_of_other_commands_may_change(half, whole):
    """A changed sweep does not make it another job."""
    stages = fruit().stages
    resume(half, Pipeline(stages, sweep={"word_overlap.weight": [1, 2]}))
    assert half.read_bytes() == whole


def test_a_collection_that_has_grown_is_refused_unless_accepted(half, tmp_path):
    """A grown collection is refused with the difference; once accepted, it is in the manifest."""
    before = snapshot(tmp_path)
    Dated.now = {"rows": 250}
    with pytest.raises(ResumeError, match=r"--accept-changes") as caught:
        resume(half)
    assert caught.value.differences == ["dated.rows: was 100, is 250"]
    assert snapshot(tmp_path) == before
    messages = []
    resume(half, accept_changes=True, warn=messages.append)
    assert messages == [f"{half}: resumed, although this differs: dated.rows: was 100, is 250"]
    manifest = read_manifest(manifest_path(half))
    assert manifest.identity == {"dated": {"rows": 250, "revision": "abc", "schema": ["id", "text"]}}
    (change,) = manifest.changes
    assert (change.queries, change.differences) == (8, ["dated.rows: was 100, is 250"])


def test_other_versions_are_a_warning(half, whole):
    """Other versions give a warning and are recorded; the job goes on."""
    manifest = json.loads(manifest_path(half).read_text(encoding="utf-8"))
    manifest["versions"]["numpy"] = "1.0"
    manifest_path(half).write_text(json.dumps(manifest), encoding="utf-8")
    messages = []
    resume(half, warn=messages.append)
    assert messages == [f"{half}: resumed, although this differs: versions.numpy: was '1.0', is '{np.__version__}'"]
    assert half.read_bytes() == whole
    assert read_manifest(manifest_path(half)).changes[0].queries == 8


def test_an_identity_that_cannot_be_found_out_ends_it(tmp_path):
    """A failing identity ends the job before anything is written."""
    pipeline = Pipeline([basic.ListedSearch(), Dated(identity_fails=True)])
    with pytest.raises(StageError, match="the server does not say"):
        run_job(pipeline, QUERIES, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: out.write_bytes(out.read_bytes()[:100]), "has 100 bytes, but the job has written "),
        (lambda out: out.write_bytes(out.read_bytes().replace(b"red", b"RED", 1)), "was changed: its first"),
        (lambda out: out.unlink(), "does not exist, but according to its manifest"),
        (lambda out: manifest_path(out).unlink(), "cannot be resumed without its manifest"),
        (lambda out: manifest_path(out).write_text("{"), "is damaged, or not a manifest of this version"),
        (lambda out: manifest_path(out).write_bytes(b"\0" * 500), "is damaged, or not a manifest of this version"),
        (lambda out: manifest_path(out).write_text('{"manifest": 2}'), "is damaged, or not a manifest of this version"),
    ],
    ids=["short", "edited", "gone", "no manifest", "half a manifest", "zeros", "newer"],
)
def test_changed_files_are_refused(half, tmp_path, damage, message):
    """Changed or missing files are refused with what to do, and nothing is changed."""
    damage(half)
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as caught:
        resume(half)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "out.jsonl"))
    assert "start again with --overwrite" in str(caught.value)
    assert snapshot(tmp_path) == before
    run_job(fruit(), QUERIES, half, batch_size=BATCH, overwrite=True)
    assert read_manifest(manifest_path(half)).state == "complete"


def test_a_complete_output_that_has_grown_is_refused(tmp_path, whole):
    """A complete output that something else has written to is refused."""
    out = tmp_path / "whole.jsonl"
    with out.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(InputError, match=r"has \d+ bytes, but the job has written \d+; put it back"):
        resume(out)


@pytest.mark.parametrize("resuming", [False, True])
def test_one_job_at_a_time(half, resuming):
    """A second job is refused while the first has the file, whether it would resume or start again."""
    outcome = []

    def intrude(done):
        if not outcome:
            with pytest.raises(InputError, match="another job is writing it; wait until it has ended") as caught:
                run_job(fruit(), QUERIES, half, batch_size=BATCH, resume=resuming, overwrite=not resuming)
            outcome.append(caught)

    resume(half, on_progress=intrude)
    assert outcome
    assert read_manifest(manifest_path(half)).state == "complete"


class Meddling(Stage):
    """Starts another job with the same output while it opens."""

    output: str

    type = "meddling"

    def setup(self):
        run_job(fruit(), QUERIES, self.output, batch_size=BATCH)

    def process(self, results, context):
        return results


def test_two_jobs_that_start_together(tmp_path, whole):
    """The job that opens more slowly finds the output of the other, and leaves it alone."""
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="was created while the job was starting; is another job writing to it"):
        run_job(Pipeline([basic.ListedSearch(), Meddling(output=str(out))]), QUERIES, out)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("folder", [False, True])
def test_the_queries_are_not_written_over(tmp_path, folder):
    """The queries are never overwritten: not the file, not that of a BEIR folder, not through a link."""
    source = tmp_path / "queries.jsonl"
    source.write_text('{"text": "red"}\n', encoding="utf-8")
    (tmp_path / "link.jsonl").symlink_to(source)
    for output in (source, tmp_path / "link.jsonl"):
        with pytest.raises(InputError, match="is one of the files that are read; write to another file"):
            run_job(fruit(), tmp_path if folder else source, output, overwrite=True)
    assert source.read_text(encoding="utf-8") == '{"text": "red"}\n'


def test_without_resume_an_unfinished_job_is_reported(half):
    """Without --resume an unfinished job or a lone manifest is refused, and so are both options together."""
    with pytest.raises(InputError, match="exists already; choose another file, resume its job"):
        run_job(fruit(), QUERIES, half)
    with pytest.raises(InputError, match="pass one of them"):
        run_job(fruit(), QUERIES, half, resume=True, overwrite=True)
    half.unlink()
    with pytest.raises(InputError, match=r"manifest\.json: exists already"):
        run_job(fruit(), QUERIES, half)


def test_a_job_that_cannot_be_opened_changes_nothing(half, tmp_path):
    """If the pipeline cannot be opened the files are unchanged."""
    before = snapshot(tmp_path)
    closed = Pipeline([basic.ListedSearch(), basic.Faulty(how="setup")])
    with pytest.raises(StageError, match="no such device"):
        run_job(closed, QUERIES, half, overwrite=True)
    assert snapshot(tmp_path) == before


def test_bad_lines_of_a_file_are_recognized(tmp_path):
    """A file with bad lines can be resumed, and warnings about lines that are done are not repeated."""
    source, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    lines = [f'{{"text": "red {number}", "filer": 1}}' if number % 4 else "oops" for number in range(12)]
    source.write_text("\n".join(lines), encoding="utf-8")
    for how, count in (("report", 12), ("skip", 9)):
        messages, again = [], []
        run_job(fruit(), source, out, batch_size=BATCH, bad_lines=how, overwrite=True, warn=messages.append)
        assert read_manifest(manifest_path(out)).progress.queries == count
        with source.open("a", encoding="utf-8") as file:
            file.write('\n{"text": "sky"}')
        assert messages
        report = resume(out, queries=source, bad_lines=how, warn=again.append)
        assert report.queries == count + 1
        assert not [line for line in again if ":1:" in line or ":2:" in line]
        source.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"q\.jsonl:1"):
        run_job(fruit(), source, tmp_path / "none.jsonl", bad_lines="fatal")
    assert not (tmp_path / "none.jsonl").exists()


def write_up_to(limit, out, queries):
    """Run the job with a limit on the size of files, and write its error to stdout."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run_job(fruit(), queries, Path(out), batch_size=BATCH, resume=True)
    except OutputError as error:
        sys.stdout.write(str(error))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_disk_that_is_full_ends_at_a_commit_point(tmp_path, name):
    """Half a batch is cut off, and the job can be resumed once there is room."""
    out, alone = tmp_path / name, tmp_path / f"alone-{name}"
    queries = [f"red {number * 7919 % 1009}" for number in range(200)]
    run_job(fruit(), queries, alone, batch_size=BATCH)
    limit = max(4000, alone.stat().st_size // 2)
    done = in_its_own_process(__file__, "write_up_to", limit, str(out), queries)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: cannot be written: File too large; " in done.stdout
    manifest = read_manifest(manifest_path(out))
    assert manifest.state == "failed"
    assert 0 < manifest.progress.queries < 200
    assert out.stat().st_size == manifest.progress.bytes <= limit
    resume(out, queries=queries)
    assert out.read_bytes() == alone.read_bytes()


def test_a_manifest_that_cannot_be_written_ends_it_before_any_work(tmp_path, whole):
    """Without a manifest no new output is left, and an existing one is unchanged."""
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


def test_a_callback_may_fail(tmp_path, whole):
    """An error in a callback ends the job at a commit point, too."""
    out = tmp_path / "out.jsonl"

    def fail(result: SearchResult, unwritten):
        if result.query.id == "6":
            raise LookupError("not found")

    with pytest.raises(LookupError):
        run_job(fruit(), QUERIES, out, batch_size=BATCH, on_result=fail)
    assert read_manifest(manifest_path(out)).progress.queries == 8
    resume(out)
    assert out.read_bytes() == whole
