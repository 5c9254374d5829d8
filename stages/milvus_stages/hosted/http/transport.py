"""The two transports: one request over HTTP, for a blocking caller and for an event loop.

Neither repeats anything: retries have one owner, and these are not it. Redirects are not followed, since httpx would
turn a POST into a GET.
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
from milvus_stages.hosted.http.quiet import stand_before_loggers, unlogged
from milvus_stages.hosted.http.watchdog import Line, SeverableLine, Watchdog
from milvus_stages.hosted.replies import Received

if TYPE_CHECKING:
    import httpx

USER_AGENT: Final = "milvus-search-pipeline"

_CONNECT_SECONDS: Final = 10.0
"""A connection must stand within this time, however long a reply may take."""

_MOST_BYTES: Final = 64 * 2**20
"""No reply of a reranker is larger, unless something is wrong with it."""


class Unanswered(ServiceError):  # noqa: N818 - says what became of the request
    """No reply came, or not the whole of it.

    Attributes:
        blamed: whether that is the service's failure; None where it says nothing of the service.
    """

    blamed: bool | None = True


class Unsent(Unanswered):
    """No connection was made, so that the service has seen nothing of the request."""


class Transport:
    """Sends request bodies to one URL.

    Args:
        url: where to.
        headers: of every request; may hold the key, so they are shown nowhere.
        service: the stage's type, to lead messages.
    """

    def __init__(self, url: str, headers: Mapping[str, str], service: str) -> None:
        self._httpx = require("httpx", extra=None, wanted_by=service)
        stand_before_loggers()
        self.request = f"POST {url}"
        self._url = url
        self._service = service
        options: dict[str, Any] = {
            # Not compressed: what a reply comes to could not be bounded before it is in memory.
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
        if fault is not None:  # raised here, where the fault is no context: its text may hold a proxy's password
            raise StageError(
                f"no client can be made for {url} ({fault})",
                (
                    "check base_url, the proxies that the environment names (HTTP_PROXY, HTTPS_PROXY, "
                    "ALL_PROXY), and SSL_CERT_FILE and SSL_CERT_DIR"
                ),
                place=str(service),
            )
        self._clients = Clients(lambda: self._httpx.Client(**options), tls=url.startswith("https:"))
        self._async_clients = AsyncClients(lambda: self._httpx.AsyncClient(**options), tls=url.startswith("https:"))
        self._watchdog = Watchdog(service)

    def _fault(self, options: dict[str, Any]) -> str | None:
        """Complete the options, and try them; the kind of error that they end in, if any."""
        try:
            options["verify"] = certificates()
            with self._httpx.Client(**options) as client:
                client.build_request("POST", self._url)
        except (ValueError, ImportError, OSError, self._httpx.InvalidURL) as error:
            return type(error).__name__
        return None

    # -- requests -----------------------------------------------------------------------------------------------

    def send(self, body: bytes, seconds: float, setting: str) -> Received:
        """Send a request, and wait for its reply at most ``seconds``.

        Args:
            body: of the request.
            seconds: from now.
            setting: what to raise for more time.

        Raises:
            Unsent: there is no connection.
            Unanswered: no reply came, or not the whole of it.
            ServiceError: the reply cannot be read.
        """
        try:
            with unlogged(), self._clients.lent() as (client, line):
                return self._exchanged(client, line, body, seconds)
        except self._failures as error:
            failure = self._told(error, seconds, setting)
        raise failure

    def _exchanged(self, client: httpx.Client, line: SeverableLine, body: bytes, seconds: float) -> Received:
        asked = self._asked(body, seconds)
        try:
            # httpx bounds each read, of which a reply may take any number.
            with (
                self._watchdog.over(seconds, line.sever),
                client.stream("POST", self._url, **asked, extensions={"trace": line.trace}) as reply,
            ):
                content = bytearray()
                for piece in reply.iter_raw():
                    content += piece
                    self._check(content)
        except Exception:
            if not line.cut:
                raise
        if line.cut:  # which can look like the end of a body, too
            raise self._late(line)
        return self._received(reply, content)

    async def asend(self, body: bytes, seconds: float, setting: str) -> Received:
        """``send`` for a task; cancelling it ends the request."""
        try:
            with unlogged():
                async with self._async_clients.lent() as (client, line):
                    try:
                        async with asyncio.timeout(seconds):
                            return await self._aexchanged(client, line, body, seconds)
                    except TimeoutError:
                        raise self._late(line) from None
        except self._failures as error:
            failure = self._told(error, seconds, setting)
        raise failure

    async def _aexchanged(self, client: httpx.AsyncClient, line: Line, body: bytes, seconds: float) -> Received:
        asked = self._asked(body, seconds)
        async with client.stream("POST", self._url, **asked, extensions={"trace": line.atrace}) as reply:
            content = bytearray()
            async for piece in reply.aiter_raw():
                content += piece
                self._check(content)
        return self._received(reply, content)

    def _late(self, line: Line) -> Exception:
        """That the time is up: before there was a connection, or on one."""
        return TimeoutError() if line.stands else self._httpx.ConnectTimeout("the time was up")

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """What a request may end in; UnicodeError is a host's name that cannot be looked up."""
        return (self._httpx.RequestError, self._httpx.InvalidURL, TimeoutError, UnicodeError, OSError)

    def _received(self, reply: httpx.Response, content: bytearray) -> Received:
        body = bytes(content)
        encoding = reply.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):  # some gateways do so unasked
            try:
                decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either, by its own first bytes
                body = decoder.decompress(body, _MOST_BYTES + 1)
            except zlib.error:
                raise self._error("the reply is compressed, and broken; check base_url", passing=True) from None
            self._check(body)
            if not decoder.eof:
                raise self._error("the reply is compressed, and not whole; check base_url", passing=True)
        elif encoding not in ("", "identity"):
            raise self._error("the reply is compressed in a way that was not asked for; check base_url")
        return Received(reply.status_code, reply.headers, body)

    def _error(self, what: str, *, passing: bool = False) -> ServiceError:
        return ServiceError(
            f"{self.request}: {what}", place=str(self._service), retryable=passing, reason_code="bad_reply"
        )

    def _asked(self, body: bytes, seconds: float) -> dict[str, Any]:
        return {"content": body, "timeout": self._httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))}

    def _check(self, content: bytes | bytearray) -> None:
        if len(content) > _MOST_BYTES:
            raise self._error(f"the reply is larger than {_MOST_BYTES >> 20} MiB")

    def _told(self, error: Exception, seconds: float, setting: str) -> Unanswered:
        """What httpx says, as ours. Another attempt may succeed, except where the server cannot be trusted."""
        kind = Unanswered
        passing = True
        cause: Exception | None = error
        late = isinstance(error, self._httpx.TimeoutException | TimeoutError)
        if isinstance(error, self._httpx.ConnectTimeout):
            kind, what = Unsent, f"no connection within {min(seconds, _CONNECT_SECONDS):.3g} s"
            step = "check base_url and the network"
        elif late:
            what = f"no reply, or not the whole of it, within {seconds:.3g} s"
            step = f"raise {setting}, or ask for less"
        elif untrusted(error):
            kind, passing, what = Unsent, False, "the server's certificate cannot be verified"
            step = "check base_url, or name the certificates to trust in SSL_CERT_FILE"
        elif isinstance(error, self._httpx.ProxyError):
            # A proxy's words may repeat its password, so they are not even kept as the cause.
            kind, cause, what = Unsent, None, "the proxy does not let it through"
            step = "check the proxies that the environment names"
        elif isinstance(error, self._httpx.ConnectError | self._httpx.InvalidURL | UnicodeError):
            kind, what, step = Unsent, f"cannot be reached ({named(error)})", "check base_url and the network"
        else:
            # What it says may hold pieces of the reply, so it is not even kept as the cause.
            what, step, cause = f"the connection broke ({type(error).__name__})", "check that the service is well", None
        failure = kind(f"{self._service}: {self.request}: {what}; {step}", retryable=passing)
        failure.__cause__ = cause
        if not passing or (late and seconds < FAIR_SECONDS):
            failure.blamed = None
        return failure

    # -- life ---------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Begin anew, without closing anything: after a fork the connections are the parent's."""
        self._clients.forget()
        self._async_clients.forget()
        self._watchdog = Watchdog(self._service)

    async def aclose_here(self) -> None:
        """Close the connections of this event loop."""
        await self._async_clients.aclose_here()

    def close(self) -> None:
        """Close the connections; those in use when they come back."""
        self._async_clients.close()
        self._clients.close()
        self._watchdog.close()


def certificates() -> ssl.SSLContext:
    """The certificates to trust, as the environment names them now."""
    return _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """The certificates to trust, which take longer to read than all else that opening does.

    Args:
        file: the value of SSL_CERT_FILE, which httpx reads itself; named here so that another value is read anew.
        folder: the value of SSL_CERT_DIR, likewise.
    """
    context: ssl.SSLContext = require("httpx", extra=None, wanted_by="a hosted reranker").create_ssl_context()
    return context


def untrusted(error: BaseException | None) -> bool:
    """Whether the cause of an error is a certificate that cannot be verified."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def named(error: Exception) -> str:
    """The error's class, and the beginning of what it says."""
    said = " ".join(str(error).split())[:100]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
