"""A standalone Milvus server for the tests: the one in the PyPI package ``milvus``.

Each server has ports of its own, that of the etcd inside it too, so that several can run at once. One that was killed
comes back on its old data: on its old ports, which the package's own launcher would not take again while connections
to them linger (it moves on to others, and clients find nothing), and once the leases of its dead nodes have run out,
until when it says that its collections are loading.
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
START_SECONDS = 45.0  # for one attempt; it takes 6 to 20 on two cores
# Ports that are not named are searched for from fixed ones on: two servers that start at once would take the same.
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


class NoServer(Exception):  # noqa: N818 - not a fault, a reason to skip
    """The server cannot run here, and why."""


class MilvusServer:
    """A server, which can die, come back, and stand still.

    Args:
        folder: for its data; it must be there and empty.
        lease: seconds after which its nodes count as dead. A collection is loaded again that long after a kill; a
            server that stood still for two thirds of it ends itself. The server's own 30 by default.
    """

    def __init__(self, folder: Path, lease: int | None = None) -> None:
        self.folder = folder
        self._lease = lease
        self._ports = dict(zip((*_PORTS, "peer", "metrics"), free_ports(len(_PORTS) + 2), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Its port for clients."""
        return self._ports["proxy"]

    @property
    def uri(self) -> str:
        """Its address for clients."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it for the first time, and wait until it takes calls.

        Raises:
            NoServer: it does not.
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
        """End it and the child that does its work, which would outlive it, as a crash does."""
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
        """Start it again, on its data and its ports, and wait until it takes calls; its collections load after that.

        Raises:
            NoServer: it does not.
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
        """Let it stand still: it takes connections, and does nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
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
    """Start a server with its data in ``folder``, yield it when it is ready, and end it.

    Args:
        folder: is removed at the end.
        lease: see ``MilvusServer``.

    Raises:
        NoServer: it cannot run on this machine.
    """
    if find_spec("milvus") is None or not _launcher().exists():
        raise NoServer("the package `milvus`, which holds the server, is not installed")
    try:
        server = _started(folder, lease)
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server_for_tests(folder: Path, lease: int | None = None) -> Iterator[MilvusServer]:
    """``running_server`` for a fixture: where it cannot run, the tests are skipped, or fail in CI."""
    running = running_server(folder, lease)
    try:
        server = running.__enter__()
    except NoServer as reason:
        if os.environ.get("CI"):  # there, half of the tests must not be left out in silence
            pytest.fail(f"no Milvus server: {reason}")
        pytest.skip(f"no Milvus server: {reason}")
    try:
        yield server
    finally:
        running.__exit__(None, None, None)


def _started(folder: Path, lease: int | None) -> MilvusServer:
    """Start the server; again where it hangs, which happens when its etcd elects a leader at a bad moment."""
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
    return lines[-1] if lines else "it said nothing"
