"""A standalone Milvus server for the tests: the one in the PyPI package ``milvus``.

Each server has its own ports, also for the etcd inside it, so that several can run at once. A server that was killed
restarts on its old data and its old ports; the package's own launcher would pick other ports while connections linger,
and clients would not find it. Until the leases of its dead nodes have expired, it reports that its collections are
loading.

A server is killed when the process that started it ends, even if that process is killed: see `start_guard`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.ports import free_ports, is_free

ATTEMPTS = 3
START_SECONDS = 45.0  # for one attempt, which takes 6 to 20 on two cores
# The server would look for unspecified ports from a fixed one on, so two servers that start at once would collide.
_PORTS = (
    "proxy",
    "etcd",
    "root-coord",
    "proxy-internal",
    "query-coord",
    "query-node",
    "index-coord",
    "index-node",
    "data-coord",
    "data-node",
)
_ETCD = """\
name: default
listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
"""


class NoServer(Exception):  # noqa: N818 - a reason to skip, not an error
    """The server cannot run here; the message says why."""


class MilvusServer:
    """A server that can be killed, restarted, and frozen.

    Args:
        folder: for its data; it must exist and be empty.
        lease: seconds after which its nodes count as dead. A collection is loaded again that long after a kill; a
            server that was frozen for two thirds of it ends itself. By default the server's own 30.
    """

    def __init__(self, folder: Path, lease: int | None = None) -> None:
        self.folder = folder
        self._lease = lease
        self._ports = dict(zip((*_PORTS, "peer", "metrics"), free_ports(len(_PORTS) + 2), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port for clients."""
        return self._ports["proxy"]

    @property
    def uri(self) -> str:
        """The URI for clients."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it for the first time, and wait until it accepts calls.

        Raises:
            NoServer: it does not start.
        """
        etcd = self.folder / "etcd.yaml"
        etcd.write_text(_ETCD.format(client=self._ports["etcd"], peer=self._ports["peer"]))
        command = [str(_launcher()), "--data", str(self.folder)]
        for name in _PORTS:
            command += [f"--{name}-port", str(self._ports[name])]
        if self._lease is not None:
            command += ["--extra-config", f"common.session.ttl={self._lease}"]
        self._launch(command, {"ETCD_CONFIG_PATH": str(etcd)})

    def kill(self) -> None:
        """Kill it, and the child process that does its work and would outlive it, as a crash would."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (is_free(self.port) and is_free(self._ports["etcd"])):
            time.sleep(0.05)
        self._process = None

    def restart(self) -> None:
        """Start it again on its data and ports, and wait until it accepts calls; its collections load after that.

        Raises:
            NoServer: it does not start.
        """
        libraries = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
        environment = {
            "ETCD_CONFIG_PATH": str(self.folder / "etcd.yaml"),
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._ports["metrics"]),
            "MILVUS_RUN_DIR": str(self.folder / "run"),
            libraries: os.pathsep.join(filter(None, (str(self.folder / "bin"), os.environ.get(libraries)))),
        }
        self.kill()
        self._launch([str(self.folder / "bin" / "milvus"), "run", "standalone"], environment)

    def freeze(self) -> None:
        """Freeze it: it accepts connections, and does nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _launch(self, command: list[str], environment: Mapping[str, str]) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._guard = start_guard(self._process.pid)
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        from pymilvus import MilvusClient

        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise NoServer(f"it ended with code {process.returncode}: {_last_line(self.folder / 'server.log')}")
            if not is_free(self.port):
                with suppress(Exception):
                    client = MilvusClient(self.uri, timeout=5, dedicated=True)
                    try:
                        client.list_collections(timeout=5)
                        return
                    finally:
                        client.close()
            time.sleep(0.2)
        raise NoServer(f"it was not ready after {START_SECONDS:g} s")


@contextmanager
def running_server(folder: Path, lease: int | None = None) -> Iterator[MilvusServer]:
    """Run a server with its data in ``folder`` for the duration of the block.

    Args:
        folder: removed at the end.
        lease: see ``MilvusServer``.

    Raises:
        NoServer: it cannot run on this machine.
    """
    if find_spec("milvus") is None or not _launcher().exists():
        raise NoServer("the package `milvus`, which holds the server, is not installed")
    try:
        server = _start(folder, lease)
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server_for_tests(folder: Path, lease: int | None = None) -> Iterator[MilvusServer]:
    """``running_server`` for a fixture: if it cannot run, the tests are skipped, or fail in CI."""
    running = running_server(folder, lease)
    try:
        server = running.__enter__()
    except NoServer as reason:
        if os.environ.get("CI"):  # so that CI does not silently skip half of the tests
            pytest.fail(f"no Milvus server: {reason}")
        pytest.skip(f"no Milvus server: {reason}")
    try:
        yield server
    finally:
        running.__exit__(None, None, None)


def _start(folder: Path, lease: int | None) -> MilvusServer:
    """Start the server; try again if it hangs, as happens when its etcd elects a leader at a bad moment."""
    for attempt in range(1, ATTEMPTS + 1):
        data = folder / f"attempt-{attempt}"
        data.mkdir()
        server = MilvusServer(data, lease)
        try:
            server.start()
        except NoServer:
            if attempt == ATTEMPTS:
                raise
        else:
            return server
    raise AssertionError("the last attempt returns or raises")


def start_guard(group: int) -> subprocess.Popen[bytes]:
    """Start a process that kills the group when this process ends, in whatever way: the pipe between them ends then."""
    code = "import os, signal, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"
    command = [sys.executable, "-S", "-c", code, str(group)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def _launcher() -> Path:
    return Path(sys.executable).with_name("milvus-server")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"
