"""The two transports: one request over HTTP, for a blocking caller and for an event loop.

Neither repeats anything: retries have one owner, and these are not it. Redirects are not followed, since httpx would
turn a POST into a GET.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from milvus_pipeline import Deadline, ServiceError, StageError, require
from milvus_stages.hosted.replies import Received

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS: Final = 10.0
"""A connection must stand within this time, however long a reply may take."""

_MOST_BYTES: Final = 64 * 2**20
"""No reply of a reranker is larger, unless something is wrong with it."""

_KEPT_SECONDS: Final = 60.0
"""An idle connection is kept so long, so that a backend with a query now and then need not connect for each."""


class Transport:
    """Sends request bodies to one URL.

    Args:
        url: where to.
        headers: of every request; may hold the key, so they are shown nowhere.
        connections: kept at most, for blocking callers together, and for each event loop.
        service: the stage's type, to lead messages.
    """

    def __init__(self, url: str, headers: Mapping[str, str], connections: int, service: str) -> None:
        self._httpx = require("httpx", extra="all", wanted_by=service)
        self.request = f"POST {url}"
        self._url = url
        self._service = service
        limits = self._httpx.Limits(
            max_connections=None, max_keepalive_connections=connections, keepalive_expiry=_KEPT_SECONDS
        )
        self._options: dict[str, Any] = {
            "headers": {"content-type": "application/json", "accept": "application/json", **headers},
            "limits": limits,
            "verify": self._httpx.create_ssl_context(),
            "follow_redirects": False,
        }
        self._lock = threading.Lock()
        self._closed = False
        self._client: httpx.Client = self._httpx.Client(**self._options)
        self._async_clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    # -- requests -----------------------------------------------------------------------------------------------

    def send(self, body: bytes, seconds: float) -> Received:
        """Send a request, and wait for its reply at most ``seconds``.

        Raises:
            ServiceError: no reply came, or not the whole of it.
        """
        deadline = Deadline.after(seconds)
        with (
            self._failures_told(seconds),
            self._client.stream("POST", self._url, **self._asked(body, seconds)) as reply,
        ):
            content = bytearray()
            # Each piece may take as long as the whole; that the whole does not is checked between them.
            for piece in reply.iter_bytes():
                content += piece
                self._check(content)
                if deadline.expired:
                    raise self._httpx.ReadTimeout("the reply did not end in time")
            return Received(reply.status_code, reply.headers, bytes(content))

    async def asend(self, body: bytes, seconds: float) -> Received:
        """``send`` for a task; cancelling it ends the request."""
        client = self._async_client()
        with self._failures_told(seconds):
            async with (
                asyncio.timeout(seconds),
                client.stream("POST", self._url, **self._asked(body, seconds)) as reply,
            ):
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

    @contextmanager
    def _failures_told(self, seconds: float) -> Iterator[None]:
        """Tell httpx's errors as ours. Another attempt may succeed, except where the server cannot be trusted."""
        try:
            yield
        except (self._httpx.TimeoutException, TimeoutError) as error:
            connecting = isinstance(error, self._httpx.ConnectTimeout)
            what = "no connection" if connecting else "no reply, or not the whole of it,"
            waited = min(seconds, _CONNECT_SECONDS) if connecting else seconds
            raise self._error(f"{what} within {waited:.3g} s", "raise request_timeout, or ask for less") from error
        except self._httpx.RequestError as error:
            if self._closed:
                raise closed_error() from error
            if _untrusted(error):
                raise self._error(
                    "the server's certificate cannot be verified",
                    "check base_url, or name the certificates to trust in SSL_CERT_FILE",
                    passing=False,
                ) from error
            if isinstance(error, self._httpx.ConnectError | self._httpx.ProxyError):
                raise self._error(f"cannot be reached ({_named(error)})", "check base_url and the network") from error
            # What it says may hold pieces of the reply.
            raise self._error(
                f"the connection broke ({type(error).__name__})", "check that the service is well"
            ) from error
        except RuntimeError as error:
            if not self._closed:  # httpx says so of a client that is closed
                raise
            raise closed_error() from error

    def _error(self, what: str, step: str, *, passing: bool = True) -> ServiceError:
        return ServiceError(f"{self._service}: {self.request}: {what}; {step}", retryable=passing)

    # -- life ---------------------------------------------------------------------------------------------------

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise closed_error()
            if loop not in self._async_clients:
                for ended in [each for each in self._async_clients if each.is_closed()]:
                    del self._async_clients[ended]  # its client can be neither used nor closed any more
                self._async_clients[loop] = self._httpx.AsyncClient(**self._options)
            return self._async_clients[loop]

    async def aclose_here(self) -> None:
        """Close the client of this event loop, if there is one. The next ``asend`` on it makes another."""
        with self._lock:
            client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def close(self) -> None:
        """Close the connections; those of event loops that still run are closed by them."""
        with self._lock:
            self._closed = True
            clients, self._async_clients = self._async_clients, {}
        for loop, client in clients.items():
            if loop.is_running():
                with suppress(RuntimeError):  # it ended just now
                    asyncio.run_coroutine_threadsafe(client.aclose(), loop)
        self._client.close()


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
