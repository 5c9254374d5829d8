"""A standalone Milvus server for the tests: the one in the PyPI package ``milvus``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

ATTEMPTS = 3
START_SECONDS = 45.0  # for one attempt; it takes 6 to 20 on two cores
_ETCD_PORT = 2379  # of the etcd inside the server, and not to be chosen


class NoServer(Exception):  # noqa: N818 - not a fault, a reason to skip
    """The server cannot run here, and why."""


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Start a server with its data in ``folder``, yield its URI when it is ready, and stop it.

    Raises:
        NoServer: it cannot run on this machine.
    """
    command = Path(sys.executable).with_name("milvus-server")
    if find_spec("milvus") is None or not command.exists():
        raise NoServer("the package `milvus`, which holds the server, is not installed")
    if not _is_free(_ETCD_PORT):
        raise NoServer(f"port {_ETCD_PORT}, which the server needs, is taken (another Milvus, perhaps)")
    try:
        process, port = _started(command, folder)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(command: Path, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server; again where it hangs, which happens when its etcd elects a leader at a bad moment."""
    for attempt in range(1, ATTEMPTS + 1):
        data, port = folder / f"attempt-{attempt}", _free_port()
        data.mkdir()
        with (data / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [str(command), "--data", str(data), "--proxy-port", str(port)],
                stdout=log,
                stderr=log,
                cwd=data,
                start_new_session=True,
            )
        try:
            _wait_until_ready(process, data, port)
        except BaseException as error:
            _stop(process)
            if attempt == ATTEMPTS or not isinstance(error, NoServer):
                raise
        else:
            return process, port
    raise AssertionError("the last attempt returns or raises")


def _wait_until_ready(process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
    """Wait until the server takes calls."""
    from pymilvus import MilvusClient

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NoServer(f"it ended with code {process.returncode}: {_last_line(folder / 'server.log')}")
        if not _is_free(port):
            with suppress(Exception):
                client = MilvusClient(f"http://127.0.0.1:{port}", timeout=5, dedicated=True)
                try:
                    client.list_collections(timeout=5)
                    return
                finally:
                    client.close()
        time.sleep(0.2)
    raise NoServer(f"it was not ready after {START_SECONDS:g} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the child that does its work, which would outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not _is_free(_ETCD_PORT):
        time.sleep(0.05)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
