"""The two transports: one request over HTTP, for a blocking caller and for an event loop.

Neither repeats anything: retries have one owner, and these are not it. Redirects are not followed, since httpx would
turn a POST into a GET.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from milvus_pipeline import ServiceError, StageError, require
from milvus_stages.hosted.replies import Received
from milvus_stages.hosted.watchdog import Line, Watchdog

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS: Final = 10.0
"""A connection must stand within this time, however long a reply may take."""

_MOST_BYTES: Final = 64 * 2**20
"""No reply of a reranker is larger, unless something is wrong with it."""

_KEPT_SECONDS: Final = 60.0
"""An idle connection is kept so long, so that a backend with a query now and then need not connect for each."""


class Unsent(ServiceError):  # noqa: N818 - says what became of the request
    """No connection was made, so that the service has seen nothing of the request."""


class Transport:
    """Sends request bodies to one URL.

    Args:
        url: where to.
        headers: of every request; may hold the key, so they are shown nowhere.
        service: the stage's type, to lead messages.
    """

    def __init__(self, url: str, headers: Mapping[str, str], service: str) -> None:
        self._httpx = require("httpx", extra="all", wanted_by=service)
        self.request = f"POST {url}"
        self._url = url
        self._service = service
        self._options: dict[str, Any] = {
            "headers": {"content-type": "application/json", "accept": "application/json", **headers},
            "limits": self._httpx.Limits(max_connections=1, keepalive_expiry=_KEPT_SECONDS),
            "verify": _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
            "follow_redirects": False,
        }
        self._lock = threading.Lock()
        self._closed = False
        # A client for each request under way, with one connection: at every request the pool of httpx looks, for each
        # of its connections, at all of them, which for some dozens takes longer than all else together.
        self._idle: list[tuple[httpx.Client, Line]] = []
        self._watchdog = Watchdog(service)
        self._async_idle: dict[asyncio.AbstractEventLoop, list[httpx.AsyncClient]] = {}
        self._ends: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}

    # -- requests -----------------------------------------------------------------------------------------------

    def send(self, body: bytes, seconds: float, setting: str) -> Received:
        """Send a request, and wait for its reply at most ``seconds``.

        Args:
            body: of the request.
            seconds: from now.
            setting: what to raise for more time.

        Raises:
            Unsent: there is no connection.
            ServiceError: no reply came, or not the whole of it.
        """
        with self._lent() as (client, line):
            try:
                # httpx bounds each read, of which a reply may take any number.
                with self._watchdog.over(seconds, line.sever):
                    received = self._exchanged(client, line, body, seconds)
                if not line.cut:
                    return received
                failure = self._told(TimeoutError(), seconds, setting)  # cut, which can look like the end of a body
            except (self._httpx.RequestError, TimeoutError) as error:
                failure = self._told(TimeoutError() if line.cut else error, seconds, setting)
        raise failure

    def _exchanged(self, client: httpx.Client, line: Line, body: bytes, seconds: float) -> Received:
        asked = self._asked(body, seconds)
        with client.stream("POST", self._url, **asked, extensions={"trace": line.trace}) as reply:
            content = bytearray()
            for piece in reply.iter_bytes():
                content += piece
                self._check(content)
            return Received(reply.status_code, reply.headers, bytes(content))

    async def asend(self, body: bytes, seconds: float, setting: str) -> Received:
        """``send`` for a task; cancelling it ends the request."""
        try:
            async with asyncio.timeout(seconds):
                return await self._aexchanged(body, seconds)
        except (self._httpx.RequestError, TimeoutError) as error:
            failure = self._told(error, seconds, setting)
        raise failure

    async def _aexchanged(self, body: bytes, seconds: float) -> Received:
        asked = self._asked(body, seconds)
        async with self._alent() as client, client.stream("POST", self._url, **asked) as reply:
            content = bytearray()
            async for piece in reply.aiter_bytes():
                content += piece
                self._check(content)
            return Received(reply.status_code, reply.headers, bytes(content))

    def _asked(self, body: bytes, seconds: float) -> dict[str, Any]:
        return {"content": body, "timeout": self._httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))}

    def _check(self, content: bytearray) -> None:
        if len(content) > _MOST_BYTES:
            raise ServiceError(f"{self._service}: {self.request}: the reply is larger than {_MOST_BYTES >> 20} MiB")

    def _told(self, error: Exception, seconds: float, setting: str) -> ServiceError:
        """What httpx says, as ours. Another attempt may succeed, except where the server cannot be trusted."""
        kind: type[ServiceError] = ServiceError
        passing = True
        cause: Exception | None = error
        if isinstance(error, self._httpx.ConnectTimeout):
            kind, what = Unsent, f"no connection within {min(seconds, _CONNECT_SECONDS):.3g} s"
            step = "check base_url and the network"
        elif isinstance(error, self._httpx.TimeoutException | TimeoutError):
            what, step = (
                f"no reply, or not the whole of it, within {seconds:.3g} s",
                f"raise {setting}, or ask for less",
            )
        elif _untrusted(error):
            kind, passing, what = Unsent, False, "the server's certificate cannot be verified"
            step = "check base_url, or name the certificates to trust in SSL_CERT_FILE"
        elif isinstance(error, self._httpx.ConnectError | self._httpx.ProxyError):
            kind, what, step = Unsent, f"cannot be reached ({_named(error)})", "check base_url and the network"
        else:
            # What it says may hold pieces of the reply, so it is not even kept as the cause.
            what, step, cause = f"the connection broke ({type(error).__name__})", "check that the service is well", None
        failure = kind(f"{self._service}: {self.request}: {what}; {step}", retryable=passing)
        failure.__cause__ = cause
        return failure

    # -- life ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _lent(self) -> Iterator[tuple[httpx.Client, Line]]:
        """A client that nobody else uses; the one that was used last, whose connection is likeliest to stand."""
        with self._lock:
            self._check_open()
            lent = self._idle.pop() if self._idle else None
        client, line = lent or (self._httpx.Client(**self._options), Line())
        try:
            yield client, line
        finally:
            with self._lock:
                kept = not self._closed and not line.cut
                if kept:
                    self._idle.append((client, line))
            if not kept:
                client.close()

    @asynccontextmanager
    async def _alent(self) -> AsyncIterator[httpx.AsyncClient]:
        """``_lent`` for a task: a client of its event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._check_open()
            for ended in [each for each in self._ends if each.is_closed()]:
                del self._ends[ended]
                self._async_idle.pop(ended, None)  # its clients can be neither used nor closed any more
            if new := loop not in self._ends:
                self._ends[loop] = self._end_of_loop()
            idle = self._async_idle.setdefault(loop, [])
            client = idle.pop() if idle else None
        if new:
            await anext(self._ends[loop])
        client = client or self._httpx.AsyncClient(**self._options)
        try:
            yield client
        finally:
            with self._lock:
                # Another list where this loop's clients were closed meanwhile.
                kept = self._async_idle.get(loop) is idle
                if kept:
                    idle.append(client)
            if not kept:
                await client.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()

    async def _end_of_loop(self) -> AsyncGenerator[None, None]:
        """Closes the clients of an event loop that ends, which first ends the generators that were begun on it."""
        try:
            yield
        finally:
            await self.aclose_here()

    async def aclose_here(self) -> None:
        """Close the clients of this event loop. The next ``asend`` on it makes another."""
        with self._lock:
            clients = self._async_idle.pop(asyncio.get_running_loop(), [])
        await _aclose(clients)

    def close(self) -> None:
        """Close the connections; those of event loops that still run are closed by them, those in use when done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            async_idle, self._async_idle = self._async_idle, {}
        for loop, clients in async_idle.items():
            if loop.is_running():
                with suppress(RuntimeError):  # it ended just now
                    asyncio.run_coroutine_threadsafe(_aclose(clients), loop)
        for client, _ in idle:
            client.close()
        self._watchdog.close()


async def _aclose(clients: list[httpx.AsyncClient]) -> None:
    for client in clients:
        await client.aclose()


@lru_cache(maxsize=4)
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """The certificates to trust, which take longer to read than all else that opening does.

    Args:
        file: the value of SSL_CERT_FILE, which httpx reads itself; named here so that another value is read anew.
        folder: the value of SSL_CERT_DIR, likewise.
    """
    context: ssl.SSLContext = require("httpx", extra="all", wanted_by="a hosted reranker").create_ssl_context()
    return context


def closed_error() -> StageError:
    """That a request found its transport closed."""
    return StageError("the stage was closed while the query ran; close a pipeline when its queries are answered")


def _untrusted(error: BaseException | None) -> bool:
    """Whether the cause of an error is a certificate that cannot be verified."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _named(error: Exception) -> str:
    """The error's class, and the beginning of what it says."""
    said = " ".join(str(error).split())[:100]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
