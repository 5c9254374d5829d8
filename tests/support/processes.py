"""Processes that tests start, and Ctrl-C for them."""

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

_AGAIN_SECONDS = 5.0


def environment() -> dict[str, str]:
    """Return the environment of a process that imports the support modules of the tests."""
    return {**os.environ, "PYTHONPATH": str(_TESTS)}


def hear_ctrl_c() -> None:
    """Let Ctrl-C end the processes that this one starts.

    Background jobs of a shell ignore it, and so do their children. Undoing that in the child would mean to fork a
    process in which gRPC and torch have threads, so this process undoes it for itself.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def in_its_own_process(file: str, function: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Call a function of a test file in a new process, and return its result: for functions that fork or set limits.

    A fork of the tests' own process, in which gRPC has threads, sometimes aborts.
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
    """Send Ctrl-C until the process ends, and return its exit code.

    Python notices a signal that comes just before a blocking read only when the read is over. A user presses again.
    """
    for _ in range(int(seconds / _AGAIN_SECONDS)):
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(_AGAIN_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"Ctrl-C did not end it in {seconds:g} s")
