"""Processes that tests start: functions in one of their own, and interrupting one as Ctrl-C does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parent.parent
_CALL = "import json, runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*json.loads(sys.argv[3]))"

_NOTICED = 5.0  # seconds


def environment() -> dict[str, str]:
    """Of a process that imports what supports the tests."""
    return {**os.environ, "PYTHONPATH": str(_TESTS)}


def hear_ctrl_c() -> None:
    """Have processes that this one starts end on Ctrl-C.

    A shell has its background jobs ignore it, which they hand down. It is undone here: to do so in the child, before it
    becomes the command, would take a fork of a process in which gRPC and torch have threads.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def in_its_own_process(file: str, function: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Call a function of a file of tests in a new process, since it forks or sets limits; how that ended.

    To fork a process in which gRPC has threads, as that of all tests, has the child abort at times.
    """
    called = [file, function, json.dumps(arguments)]
    return subprocess.run(
        [sys.executable, "-c", _CALL, *called],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def interrupted(process: subprocess.Popen[bytes], seconds: float = 60.0) -> int:
    """The exit code after Ctrl-C.

    Python sees a signal that comes in the instant before a read begins only when the read is over. Whoever sits before
    it presses again; so does this.
    """
    for _ in range(int(seconds / _NOTICED)):
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(_NOTICED)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"Ctrl-C did not end it in {seconds:g} s")
