"""The file of a score cache: shared, killed, locked, damaged, full, or not a cache."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from milvus_pipeline import Pipeline, StageError
from milvus_pipeline.scores import store
from milvus_pipeline.scores.store import acquire, release
from support.fake_stages.basic import ListedSearch
from support.fake_stages.counted import Counted
from support.processes import in_its_own_process


@pytest.fixture
def file(tmp_path) -> Path:
    """A place for a cache."""
    return tmp_path / "scores.db"


@pytest.fixture
def cache(file):
    """An open cache."""
    made = acquire(str(file))
    yield made
    release(made)


@pytest.fixture
def patient(monkeypatch):
    """Waits for other threads however slow the machine is."""
    monkeypatch.setattr(store, "_PATIENCE", 30.0)


def key(number: int) -> bytes:
    return number.to_bytes(24, "big")


def rows(numbers) -> dict[bytes, float]:
    """A score for each number: its half."""
    return {key(number): number / 2 for number in numbers}


def in_file(file: Path) -> int:
    """How many rows the file itself has."""
    database = sqlite3.connect(file)
    (count,) = database.execute("SELECT count(*) FROM scores").fetchone()
    database.close()
    return count


def test_numbers_come_back_to_the_last_bit(file):
    """Scores read from the file are exactly those written."""
    scores = {key(place): score for place, score in enumerate([0.1 + 0.2, 0.0, 5e-324, 1.7e308, -3.5])}
    file.touch()  # an empty file becomes a cache
    cache = acquire(str(file))
    cache.put(scores)
    release(cache)
    again = acquire(str(file))
    assert {k: v.hex() for k, v in again.get(list(scores)).items()} == {k: v.hex() for k, v in scores.items()}
    assert again.get([key(99)]) == {}
    release(again)
    assert [path.name for path in file.parent.iterdir()] == ["scores.db"]


def test_many_are_written_and_found_at_once(cache, file):
    """More scores than go into one statement are written and found; a score that is in the file is not replaced."""
    cache.put(rows(range(25_000)))
    cache.put({key(20_000): 0.7})
    assert in_file(file) == 25_000
    assert cache.get([key(number) for number in range(20_000, 30_000)]) == rows(range(20_000, 25_000))


def test_stages_of_a_process_share_it(file):
    """Two names of a file are one cache, which is open until its last user closes."""
    link = file.parent / "link.db"
    link.symlink_to(file)
    one, two = Counted(cache=str(file)), Counted(cache=str(link), name="two")
    one.open()
    two.open()
    one("red", ["a red one"])
    one.close()
    two("red", ["a red one"])
    assert two.asked == []
    two.close()
    assert in_file(file) == 1


def test_a_stage_that_is_open_twice_closes_it_once(file):
    """Each open needs its close."""
    stage = Counted(cache=str(file))
    for _ in range(2):
        stage.open()
    stage.close()
    stage("red", ["red"])
    stage.close()
    assert not stage.is_open
    assert [path.name for path in file.parent.iterdir()] == ["scores.db"]


def test_threads_share_it(patient, cache):
    """Eight threads write and read the same scores."""

    def work(seed):
        numbers = np.random.default_rng(seed).choice(2000, 500, replace=False).tolist()
        for start in range(0, 500, 50):
            part = numbers[start : start + 50]
            cache.put(rows(part))
            assert cache.get([key(number) for number in part]) == rows(part)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


WORKER = """
import sys
from milvus_pipeline.scores import store
from milvus_pipeline.scores.store import acquire, release
store._PATIENCE = 30.0
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache = acquire(path)
for number in range(first, first + count):
    cache.put({number.to_bytes(24, "big"): number / 2})
    if number % 10 == 0:
        assert cache.get([number.to_bytes(24, "big")]), number
release(cache)
"""


def test_processes_share_it(file):
    """Four processes create the same file at the same time, and all of their rows are there in the end."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(file), str(first), "400"], stderr=subprocess.PIPE, text=True
        )
        for first in (0, 300, 600, 10_000)
    ]
    for worker in workers:
        _, warnings = worker.communicate(timeout=60)
        assert (worker.returncode, warnings) == (0, "")
    assert in_file(file) == 1000 + 400


ENDLESS = """
import sys
from milvus_pipeline.scores.store import acquire
cache = acquire(sys.argv[1])
first = int(sys.argv[2])
print("begun", flush=True)
while True:
    cache.put({number.to_bytes(24, "big"): number / 2 for number in range(first, first + 200)})
    first += 200
"""


def test_a_process_that_is_killed_leaves_it_whole(file):
    """After kills in the middle of writing the file is intact, and each transaction whole."""
    rng = np.random.default_rng(7)
    for turn in range(3):
        worker = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(file), str(turn * 10_000_000)], stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.02, 0.2))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    cache = acquire(str(file))  # which looks for damage
    release(cache)
    database = sqlite3.connect(file)
    found = database.execute("SELECT key, score FROM scores").fetchall()
    database.close()
    assert len(found) >= 200
    assert len(found) % 200 == 0  # a transaction is there as a whole
    assert all(score == int.from_bytes(own, "big") / 2 for own, score in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_goes_on_with_it(file):
    """Parent and children read and write after a fork, and do not harm each other."""
    done = in_its_own_process(__file__, "fork_with_a_cache", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert in_file(file) == 2 + 50 + 3


def fork_with_a_cache(file):
    stage = Counted(cache=file)
    stage.open()
    stage("red", ["of the parent", "of both"])
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_child, args=(stage, number)) for number in range(3)]
    for child in children:
        child.start()
    stage("red", [f"later {number}" for number in range(50)])
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    stage.asked.clear()
    stage("red", ["of child 0", "of child 1", "of child 2", "of both", "later 7"])
    assert stage.asked == []
    stage.close()


def _child(stage, number):
    stage.asked.clear()
    stage("red", ["of the parent", f"of child {number}"])
    assert stage.asked == [(f"of child {number}",)]
    stage.close()


def test_a_stage_that_is_never_closed_loses_nothing(file):
    """A score is in the file when the call that made it returns."""
    stage = Counted(cache=str(file))
    stage("red", [f"text {number}" for number in range(3000)])
    assert in_file(file) == 3000
    stage.close()


# -- what is refused ----------------------------------------------------------------------------------------------


def made(path: Path, *statements: str) -> None:
    """Run these statements on a database."""
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def refusal(path: Path) -> str:
    """The error of a stage that opens with this file, which it leaves as it is."""
    before = path.read_bytes() if path.is_file() else None
    stage = Counted(cache=str(path))
    with pytest.raises(StageError) as caught:
        stage.open()
    assert not stage.is_open
    assert caught.value.reason_code == "config"
    assert (path.read_bytes() if path.is_file() else None) == before
    return str(caught.value)


def test_something_else_is_not_touched(file):
    """A text file, another program's database and a cache of a later version are refused and left alone."""
    message = f"cache: {file} is not a score cache of format 1; it is left as it is; name another file"
    file.write_text("notes of mine " * 50)
    assert refusal(file) == message
    file.unlink()
    made(file, "CREATE TABLE scores (key BLOB PRIMARY KEY, score REAL)")
    assert refusal(file) == message
    file.unlink()
    release(acquire(str(file)))
    made(file, "PRAGMA user_version = 7")
    assert refusal(file) == message


def test_a_place_where_no_file_can_be_is_refused(file):
    """A folder, and a file in a folder that does not exist, are refused."""
    assert "is a folder; name a file in it" in refusal(file.parent)
    assert "does not exist; create it, or name another path" in refusal(file.parent / "missing" / "scores.db")


def test_a_damaged_file_is_not_used(file):
    """What is damaged is not read, and the report says what to do; a file whose beginning is damaged is refused."""
    cache = acquire(str(file))
    cache.put(rows(range(5000)))
    release(cache)
    data = bytearray(file.read_bytes())
    data[4096:] = np.random.default_rng(0).bytes(len(data) - 4096)
    file.write_bytes(data)
    with Pipeline([ListedSearch(), Counted(cache=str(file))]) as pipeline:
        result = pipeline.run("red")
    assert (result.status, result.report("counted").details["cached"]) == ("ok", 0)
    assert any(warning.endswith("malformed; delete the file if it is damaged") for warning in result.warnings)
    data[100:4096] = bytes(3996)
    file.write_bytes(data)
    assert f"cache: {file} cannot be used: database disk image is malformed; " in refusal(file)


# -- what fails while it is used ----------------------------------------------------------------------------------


def test_a_locked_file_holds_nobody_up(file, caplog):
    """While another process locks the file, queries are answered, scores are dropped, and one warning is logged."""
    with Pipeline([ListedSearch(), Counted(cache=str(file))]) as pipeline:
        pipeline.run("red")
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for query in ("blue", "green", "red"):
            result = pipeline.run(query)
            assert (result.status, result.warnings) == ("ok", [])
        assert result.report("counted").details["cached"] == 4  # reading needs no lock
        assert [record.getMessage() for record in caplog.records] == [
            f"the score cache {file} cannot be written, so scores are not kept: database is locked"
        ]
        other.execute("ROLLBACK")
        other.close()
        pipeline.run("green")
    assert in_file(file) == 8


def test_a_file_that_cannot_be_read_is_not_used(file):
    """Everything is scored then, and the report says why; nothing fails."""
    with Pipeline([ListedSearch(), Counted(cache=str(file))]) as pipeline:
        pipeline.run("red")
        made(file, "DROP TABLE scores")
        result = pipeline.run("red")
        assert result.status == "ok"
        assert result.report("counted").details["cached"] == 0
        assert any("cannot be read, so nothing is found in it: no such table" in warning for warning in result.warnings)


def test_a_full_disk_keeps_what_is_written(cache, file, caplog):
    """Scores that find no room are dropped as a whole; later ones are kept again."""
    cache.put(rows(range(10)))
    pages(cache, 3)
    cache.put(rows(range(5, 2000)))
    assert "scores are not kept: database or disk is full" in caplog.text
    assert in_file(file) == 10
    pages(cache, 1000)
    cache.put(rows(range(20)))
    assert in_file(file) == 20


def pages(cache, count):
    """Limit the size of the database, in pages of 4 KiB."""
    with cache._writing.held() as database:
        database.execute(f"PRAGMA max_page_count = {count}")


def test_a_closed_cache_finds_and_keeps_nothing(file):
    """A query that is still running when its stage is closed does not open the file again."""
    cache = acquire(str(file))
    release(cache)
    cache.put(rows([1]))
    with pytest.raises(StageError, match="it was closed"):
        cache.get([key(1)])
    assert in_file(file) == 0
