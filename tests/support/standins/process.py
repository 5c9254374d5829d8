"""A stand-in in a separate process, for measurements: the server's work then takes no time from the client's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TESTS = Path(__file__).parents[2]


@contextmanager
def standin_process(provider: str, *, latency: float = 0.0) -> Iterator[tuple[str, str]]:
    """Start ``python -m support.standins``, yield its URL and key, and end it.

    Args:
        provider: its name, such as ``cohere``.
        latency: seconds that every reply takes.
    """
    path = os.pathsep.join(filter(None, (str(_TESTS), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", "support.standins", provider, "--latency", str(latency)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    with process:  # waits for its end, and closes the pipes
        try:
            url, key = process.stdout.readline().split()
            yield url, key
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
