"""A server does not outlive the tests that started it."""

from __future__ import annotations

import subprocess
import sys

from support.processes import environment

_STARTS_A_SERVER = """
import os, subprocess, sys
from support.milvus_server import start_guard
server = subprocess.Popen(["sleep", "300"], start_new_session=True)
start_guard(server.pid)
print("started", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_takes_its_server_with_it() -> None:
    """Killing the process that started a server closes its pipe to the guard, which kills the server."""
    command = [sys.executable, "-c", _STARTS_A_SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.kill()
        process.communicate(timeout=60)  # the server has the same standard output, which ends with the last of both
