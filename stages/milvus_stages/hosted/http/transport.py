"""Requests over HTTP, for blocking callers and for event loops.

Nothing is retried here. Redirects are not followed, since httpx would turn a POST into a GET.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from milvus_pipeline import ServiceError, StageError
from milvus_pipeline.plugin import FAIR_SECONDS, require
from milvus_stages.hosted.http.clients import KEPT_SECONDS, AsyncClients, Clients
from milvus_stages.hosted.http.quiet import install_log_filter, unlogged
from milvus_stages.hosted.http.watchdog import Line, SeverableLine, Watchdog
from milvus_stages.hosted.replies import Received

if TYPE_CHECKING:
    import httpx

USER_AGENT: Final = "milvus-search-pipeline"

_CONNECT_SECONDS: Final = 10.0
"""Seconds to connect, at most, however long a reply may take."""

_MOST_BYTES: Final = 64 * 2**20
"""A larger reply is an error."""


class Unanswered(ServiceError):  # noqa: N818 - names what became of the request
    """No complete reply came.

    Attributes:
        blamed: whether that counts as the service's failure; None if it says nothing about the service.
    """

    blamed: bool | None = True


class Unsent(Unanswered):
    """No connection was made, so that the service has not seen the request."""


class Transport:
    """Sends requests to one URL.

    Args:
        url: the endpoint.
        headers: of every request; may hold the key, so they are never shown.
        service: the stage's type, for messages.
        method: of HTTP.
    """

    def __init__(self, url: str, headers: Mapping[str, str], service: str, method: str = "POST") -> None:
        self._httpx = require("httpx", extra=None, wanted_by=service)
        install_log_filter()
        self.request = f"{method} {url}"
        self._method = method
        self._url = url
        self._service = service
        options: dict[str, Any] = {
            # Not compressed: the size of a compressed reply is not known before it is in memory.
            "headers": {
                "content-type": "application/json",
                "accept": "application/json",
                "accept-encoding": "identity",
                **headers,
            },
            "limits": self._httpx.Limits(max_connections=1, keepalive_expiry=KEPT_SECONDS),
            "follow_redirects": False,
        }
        fault = self._fault(options)
        if fault is not None:  # raised here, without a context, whose text may hold a proxy's password
            raise StageError(
                f"no client can be made for {url} ({fault})",
                "check base_url, the proxies that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY), and "
                "SSL_CERT_FILE and SSL_CERT_DIR",
                place=service,
            )
        self._options = options
        self.reset()

    def reset(self) -> None:
        """Begin without connections. Those from before a fork are not closed, since they are the parent's."""
        tls = self._url.startswith("https:")
        self._clients = Clients(lambda: self._httpx.Client(**self._options), tls=tls)
        self._async_clients = AsyncClients(lambda: self._httpx.AsyncClient(**self._options), tls=tls)
        self._watchdog = Watchdog(self._service)

    def _fault(self, options: dict[str, Any]) -> str | None:
        """Complete the options and try them; return the kind of error that they cause, if any."""
        try:
            options["verify"] = certificates()
            with self._httpx.Client(**options) as client:
                client.build_request(self._method, self._url)
        except (ValueError, ImportError, OSError, self._httpx.InvalidURL) as error:
            return type(error).__name__
        return None

    # -- requests -----------------------------------------------------------------------------------------------

    def send(self, body: bytes, seconds: float, advice: str) -> Received:
        """Send a request, and return its reply.

        Args:
            body: of the request.
            seconds: that the request may take.
            advice: the next step if no complete reply comes in time.

        Raises:
            Unsent: no connection could be made.
            Unanswered: no complete reply came.
            ServiceError: the reply cannot be read.
        """
        try:
            with unlogged(), self._clients.lend() as (client, line):
                return self._exchange(client, line, body, seconds)
        except self._failures as error:
            failure = self._failure(error, seconds, advice)
        raise failure

    def _exchange(self, client: httpx.Client, line: SeverableLine, body: bytes, seconds: float) -> Received:
        options = self._request_options(body, seconds)
        try:
            # httpx limits the time of each read, of which a reply may take any number.
            with (
                self._watchdog.over(seconds, line.sever),
                client.stream(self._method, self._url, **options, extensions={"trace": line.trace}) as reply,
            ):
                content = bytearray()
                for piece in reply.iter_raw():
                    content += piece
                    self._check(content)
        except Exception:
            if not line.cut:
                raise
        if line.cut:  # which can also look like the end of a body
            raise self._late(line)
        return self._read(reply, content)

    async def asend(self, body: bytes, seconds: float, advice: str) -> Received:
        """``send`` for a task; cancelling it ends the request."""
        try:
            with unlogged():
                async with self._async_clients.lend() as (client, line):
                    try:
                        async with asyncio.timeout(seconds):
                            return await self._aexchange(client, line, body, seconds)
                    except TimeoutError:
                        raise self._late(line) from None
        except self._failures as error:
            failure = self._failure(error, seconds, advice)
        raise failure

    async def _aexchange(self, client: httpx.AsyncClient, line: Line, body: bytes, seconds: float) -> Received:
        options = self._request_options(body, seconds)
        async with client.stream(self._method, self._url, **options, extensions={"trace": line.atrace}) as reply:
            content = bytearray()
            async for piece in reply.aiter_raw():
                content += piece
                self._check(content)
        return self._read(reply, content)

    def _late(self, line: Line) -> Exception:
        """Return the error for a request that ran out of time before it was connected, or afterwards."""
        return TimeoutError() if line.connected else self._httpx.ConnectTimeout("the time was up")

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """The errors of a request; UnicodeError means a host name that cannot be looked up."""
        return (self._httpx.RequestError, self._httpx.InvalidURL, TimeoutError, UnicodeError, OSError)

    def _read(self, reply: httpx.Response, content: bytearray) -> Received:
        body = bytes(content)
        encoding = reply.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):  # some gateways compress unasked
            try:
                decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects which of the two
                body = decoder.decompress(body, _MOST_BYTES + 1)
            except zlib.error:
                raise self._error("the reply is compressed and corrupt", passing=True) from None
            self._check(body)
            if not decoder.eof:
                raise self._error("the reply is compressed and incomplete", passing=True)
        elif encoding not in ("", "identity"):
            raise self._error("the reply is compressed in a way that was not asked for")
        return Received(reply.status_code, reply.headers, body)

    def _error(self, what: str, *, passing: bool = False) -> ServiceError:
        return ServiceError(
            f"{self.request}: {what}", "check base_url", place=self._service, retryable=passing, reason_code="bad_reply"
        )

    def _request_options(self, body: bytes, seconds: float) -> dict[str, Any]:
        return {"content": body, "timeout": self._httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))}

    def _check(self, content: bytes | bytearray) -> None:
        if len(content) > _MOST_BYTES:
            raise self._error(f"the reply is larger than {_MOST_BYTES >> 20} MiB")

    def _failure(self, error: Exception, seconds: float, advice: str) -> Unanswered:
        """Return an error of httpx as one of ours. A retry may help, unless the server cannot be trusted."""
        kind: type[Unanswered] = Unsent
        cause: Exception | None = error
        passing = True
        late = isinstance(error, self._httpx.TimeoutException | TimeoutError)
        if isinstance(error, self._httpx.ConnectTimeout):
            what = f"no connection within {min(seconds, _CONNECT_SECONDS):.3g} s"
            step = "check base_url and the network"
        elif late:
            kind, what, step = Unanswered, f"no complete reply within {seconds:.3g} s", advice
        elif is_untrusted(error):
            passing, what = False, "the server's certificate cannot be verified"
            step = "check base_url, or name the certificates to trust in SSL_CERT_FILE"
        elif isinstance(error, self._httpx.ProxyError):
            # A proxy's words may repeat its password, so they are not even kept as the cause.
            cause, what = None, "the proxy refuses the connection"
            step = "check the proxies that the environment names"
        elif isinstance(error, self._httpx.ConnectError | self._httpx.InvalidURL | UnicodeError):
            what, step = f"cannot be reached ({brief(error)})", "check base_url and the network"
        else:
            # Its text may hold pieces of the reply, so it is not even kept as the cause.
            kind, cause, what = Unanswered, None, f"the connection broke ({type(error).__name__})"
            step = "check the service"
        failure = kind(f"{self.request}: {what}", step, place=self._service, retryable=passing)
        failure.__cause__ = cause
        if not passing or (late and seconds < FAIR_SECONDS):
            failure.blamed = None
        return failure

    # -- life ---------------------------------------------------------------------------------------------------

    async def aclose_here(self) -> None:
        """Close the connections of this event loop."""
        await self._async_clients.aclose_here()

    def close(self) -> None:
        """Close the connections; those in use are closed when they are returned."""
        self._async_clients.close()
        self._clients.close()
        self._watchdog.close()


def certificates() -> ssl.SSLContext:
    """Return the certificates to trust, as the environment names them now."""
    return _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Read the certificates, which takes longer than anything else in opening a stage.

    Args:
        file: the value of SSL_CERT_FILE. httpx reads it itself; it is an argument so that a new value is read.
        folder: the value of SSL_CERT_DIR, likewise.
    """
    context: ssl.SSLContext = require("httpx", extra=None, wanted_by="a hosted reranker").create_ssl_context()
    return context


def is_untrusted(error: BaseException | None) -> bool:
    """Return whether the cause of an error is a certificate that cannot be verified."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def brief(error: Exception) -> str:
    """Return the error's class, and the beginning of its text."""
    text = " ".join(str(error).split())[:100]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
