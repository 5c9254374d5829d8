"""The faults of the proxy affect connections as documented, and the proxy leaves nothing behind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from support.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that echoes."""

    def answer(end: socket.socket) -> None:
        with end:
            while data := end.recv(100):
                end.sendall(data)

    def accept() -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            each = threading.Thread(target=answer, args=(end,))
            each.start()
            threads.append(each)

    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))
    accepting = threading.Thread(target=accept)
    accepting.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in (accepting, *threads):
        thread.join(10)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


def connected(proxy: Proxy, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout)


def asked(end: socket.socket, data: bytes = b"ping") -> bytes:
    end.sendall(data)
    return end.recv(100)


def test_it_passes_on_what_comes(proxy: Proxy) -> None:
    """Bytes pass in both directions, and so does the end of a connection."""
    with connected(proxy) as end:
        assert asked(end) == b"ping"
        assert (proxy.accepted, proxy.open) == (1, 1)
        end.shutdown(socket.SHUT_WR)
        assert end.recv(100) == b""


def test_slow_connections(proxy: Proxy) -> None:
    """Chunks are delayed, or bytes pass one at a time."""
    with connected(proxy) as end:
        proxy.delay(0.1)
        started = time.monotonic()
        assert asked(end) == b"ping"
        assert time.monotonic() - started >= 0.2
        proxy.trickle(pause=0.02)
        assert asked(end) == b"p"


def test_a_frozen_connection_goes_on_when_it_is_thawed(proxy: Proxy) -> None:
    """While it is frozen, neither old nor new connections get a reply; afterwards they do."""
    with connected(proxy, 0.2) as old:
        proxy.freeze()
        with connected(proxy, 0.2) as new:
            for end in (old, new):
                with pytest.raises(TimeoutError):
                    asked(end)
                end.settimeout(10)
            proxy.heal()
            assert old.recv(100) == new.recv(100) == b"ping"


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_connections_end(proxy: Proxy, fault: str) -> None:
    """Open connections, and new ones if requested, end with FIN or RST."""
    ending = nullcontext() if fault == "cut" else pytest.raises(ConnectionResetError)
    with connected(proxy) as end:
        assert asked(end) == b"ping"
        getattr(proxy, fault)()
        with ending:
            assert end.recv(100) == b""
    with connected(proxy) as end:
        assert asked(end) == b"ping"
        getattr(proxy, fault)(new=True)
    with ending, connected(proxy) as end:  # may be raised by the connection itself
        assert end.recv(100) == b""
    proxy.heal()
    with connected(proxy) as end:
        assert asked(end) == b"ping"


def test_a_reply_ends_half_way(proxy: Proxy) -> None:
    """A connection ends after the given number of bytes of replies."""
    with connected(proxy) as end:
        assert asked(end) == b"ping"
        proxy.cut_after(6)
        assert asked(end) == b"ping"
        assert asked(end) == b"pi"
        assert end.recv(100) == b""


def test_a_port_that_refuses_and_comes_back(proxy: Proxy) -> None:
    """Nothing listens, and then the proxy does again on the same port."""
    with connected(proxy) as end:
        assert asked(end) == b"ping"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            end.recv(100)
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.heal()
    with connected(proxy) as end:
        assert asked(end) == b"ping"


def test_the_end_of_the_proxy_ends_its_connections(echo: int) -> None:
    """Its thread is gone, and a client that is still connected gets an error."""
    with Proxy(echo) as proxy:
        end = connected(proxy)
        assert asked(end) == b"ping"
    assert f"proxy {proxy.port}" not in {thread.name for thread in threading.enumerate()}
    with end, pytest.raises(ConnectionResetError):
        end.recv(100)
