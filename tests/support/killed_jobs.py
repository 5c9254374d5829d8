"""Jobs whose processes are killed: at random moments from outside, or at each of their file system calls.

It forks, so it runs as a script: ``python -m support.killed_jobs random|each FOLDER OUTPUT``. It prints one JSON object
with its observations, for the caller to check.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from milvus_pipeline import Pipeline, manifest_path, read_manifest, run_job
from milvus_pipeline.jobs import commits
from milvus_pipeline.jobs.manifest import Manifest
from support.fake_stages import basic

BATCH = 4
FAILING = "plum"


def pipeline(seconds: float = 0.0) -> Pipeline:
    """Return a search, a stage that takes time, one that fails for some queries, and a reranker."""
    slow = basic.Slow(seconds=seconds)
    return Pipeline([basic.ListedSearch(), slow, basic.Faulty(how="word", word=FAILING), basic.WordOverlap()])


def queries(count: int) -> Iterator[str]:
    """Yield texts; some fail in a stage, and some are empty."""
    for number in range(count):
        yield "" if number % 17 == 5 else f"red {FAILING if number % 7 == 3 else 'pear'} {number}"


def run(output: Path, count: int, seconds: float = 0.0) -> None:
    """Start or resume the job."""
    run_job(pipeline(seconds), queries(count), output, batch_size=BATCH, resume=True)


def forked(work: Callable[[], None]) -> int:
    """Do the work in a forked process that exits without cleaning up, and return its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    """Wait for the process, and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def size_of(output: Path) -> int:
    """Return the bytes in the output."""
    return output.stat().st_size if output.exists() else 0


def known(output: Path) -> Manifest | None:
    """Return the manifest, or None if there is none yet."""
    return read_manifest(manifest_path(output))


# -- at random moments -------------------------------------------------------------------------------------------------


def kill_at_random(output: Path, undisturbed: Path, kills: int, count: int = 480) -> dict[str, Any]:
    """Kill a job repeatedly, each time when its output has grown by a random number of bytes."""
    commits._INTERVAL = 0.01  # manifests as often as in a job of hours
    seconds = 0.006
    run(undisturbed, count, seconds)
    whole = undisturbed.stat().st_size
    rng = np.random.default_rng(zlib.crc32(output.name.encode()))
    seen = []
    for kill in range(kills):
        begun = size_of(output)
        left = (whole - begun) / (kills - kill + 1)  # so that something is left for the last one
        target = begun + rng.uniform(0.1, 1.0) * left
        child = forked(lambda: run(output, count, seconds))
        while size_of(output) < target:
            if os.waitpid(child, os.WNOHANG)[0]:
                break  # it finished before the kill; the caller sees that one is missing
        else:
            time.sleep(float(rng.choice([0, 0, 0.001, 0.003])))
            os.kill(child, signal.SIGKILL)
            status = ended(child)
            found = known(output)
            seen.append(
                {
                    "status": status,
                    "queries": found.progress.queries if found else None,
                    "state": found.state if found else None,
                    "behind": output.stat().st_size - (found.progress.bytes if found else 0),
                }
            )
    last = ended(forked(lambda: run(output, count, seconds)))
    final = known(output)
    return {
        "kills": seen,
        "last": last,
        "same": output.read_bytes() == undisturbed.read_bytes(),
        "resumptions": final.resumptions if final else None,
        "total": count,
    }


# -- at each call ------------------------------------------------------------------------------------------------------


class Killer:
    """Kills this process at step ``at``: before or after a file system call, or in the middle of a write."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Wrap the file system calls."""
        for name in ("open", "fsync", "ftruncate", "replace", "unlink", "fchmod"):
            setattr(os, name, self._stepped(getattr(os, name)))
        write = os.pwrite

        def halves(file: int, data: Any, at: int) -> int:
            self.step()
            half = len(data) // 2
            write(file, data[:half], at)
            self.step()
            return half + write(file, data[half:], at + half)

        os.pwrite = halves

    def _stepped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*given: Any, **named: Any) -> Any:
            self.step()
            done = call(*given, **named)
            self.step()
            return done

        return stepped


def kill_at_each(output: Path, undisturbed: Path, count: int = 10) -> dict[str, Any]:
    """Kill a job at each of its steps and its resumption at a random one, and report wrong outcomes."""
    commits._INTERVAL = -1.0  # a manifest for each batch
    os.fsync = lambda file: None  # only a crash of the machine loses what was written
    run(undisturbed, count)
    whole = undisturbed.read_bytes()
    rng = np.random.default_rng(zlib.crc32(output.name.encode()))
    wrong = []
    at = 0
    while True:
        at += 1
        for path in (output, manifest_path(output), Path(f"{manifest_path(output)}.new")):
            path.unlink(missing_ok=True)

        def killed(step: int) -> Callable[[], None]:
            def work() -> None:
                Killer(step).install()
                run(output, count)

            return work

        first = ended(forked(killed(at)))
        second = ended(forked(killed(int(rng.integers(1, 40)))))
        last = ended(forked(lambda: run(output, count)))
        leftover = Path(f"{manifest_path(output)}.new").exists()
        if last or leftover or output.read_bytes() != whole or {first, second} - {0, -signal.SIGKILL}:
            wrong.append({"at": at, "statuses": [first, second, last], "leftover": leftover})
        if first == 0:
            return {"steps": at - 1, "wrong": wrong}


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    name = sys.argv[3]
    with contextlib.chdir(folder):
        if sys.argv[1] == "random":
            found = kill_at_random(Path(name), Path(f"whole-{name}"), int(sys.argv[4]))
        else:
            found = kill_at_each(Path(name), Path(f"whole-{name}"))
    sys.stdout.write(json.dumps(found))
