"""`split`: a folder becomes a file of passages that `ingest` takes."""

import gzip
import json

import pytest


@pytest.fixture
def folder(tmp_path):
    """Two files with three passages."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("# One\n\nFirst\u2028line.\n\n## Two\n\nSecond.\n", encoding="utf-8")
    (tmp_path / "texts" / "b.txt").write_text("Third, zweitens ä.\n", encoding="utf-8")
    return tmp_path / "texts"


def test_passages_go_to_a_file(invoke, folder, tmp_path):
    """The file has one JSON object per line, whatever line breaks a text has; stderr has the counts."""
    done = invoke("split", folder, "-o", tmp_path / "corpus.jsonl")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"{folder}: 3 passages of 2 files, the longest of 18 characters\n"
    text = (tmp_path / "corpus.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["_id"] for line in text.splitlines()] == ["a.md#1", "a.md#2", "b.txt#1"]
    assert "ä" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "texts"]


def test_passages_go_to_stdout(invoke, folder):
    """Without --output the passages are printed, and the counts go to stderr."""
    done = invoke("split", folder)
    assert done.exit_code == 0
    assert [json.loads(line)["title"] for line in done.stdout.splitlines()] == ["One", "One > Two", "b"]
    assert "3 passages of 2 files" in done.stderr


def test_a_gzipped_file_is_the_same_each_time(invoke, folder, tmp_path):
    """Neither the time nor the name is in it."""
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        assert invoke("split", folder, "-o", tmp_path / name).exit_code == 0
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(gzip.decompress(packed).decode().splitlines()) == 3


def test_the_options_for_length_and_files(invoke, folder):
    """--max-chars cuts, --glob chooses."""
    done = invoke("split", folder, "--max-chars", "8", "--glob", "*.txt")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["Third,", "zweitens", "ä."]


def test_a_file_is_not_overwritten_unasked(invoke, folder, tmp_path):
    """And keeps what it holds when it cannot be replaced by something whole."""
    output = tmp_path / "corpus.jsonl"
    output.write_text("old")
    refused = invoke("split", folder, "-o", output)
    assert refused.exit_code == 2
    assert "already exists; choose another file, or pass --overwrite" in refused.stderr
    (folder / "c.md").write_bytes(b"\xff")
    failed = invoke("split", folder, "-o", output, "--overwrite")
    assert failed.exit_code == 2
    assert failed.stderr == f"error: {folder / 'c.md'}: is not UTF-8 text (invalid start byte at byte 0)\n"
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "texts"]
    skipped = invoke("split", folder, "-o", output, "--overwrite", "--bad-files", "skip")
    assert skipped.exit_code == 0
    assert skipped.stderr.startswith(f"warning: {folder / 'c.md'}: is not UTF-8 text")
    assert len(output.read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "is not a folder; check the path"),
        (["texts", "-o", "none/corpus.jsonl"], "the folder none does not exist; create it first"),
        (["texts", "-o", "texts"], "is a folder; give the name of a file in it"),
        (["texts", "--glob", "*.rst"], "has no files that match '*.rst'"),
        (["texts", "--max-chars", "0"], "--max-chars"),
    ],
)
def test_what_cannot_be_done_is_reported(invoke, folder, tmp_path, monkeypatch, arguments, message):
    """With the exit code of bad usage."""
    monkeypatch.chdir(tmp_path)
    done = invoke("split", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
