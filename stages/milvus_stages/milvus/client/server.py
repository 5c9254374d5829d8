"""A connection to a Milvus server, for blocking callers and for event loops."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final, NoReturn, Self
from urllib.parse import urlsplit

from milvus_pipeline import ConfigError, StageError
from milvus_pipeline.plugin import Deadline, require
from milvus_stages.milvus.client.loops import LoopClients
from milvus_stages.milvus.client.tls import TLS, secure_channel

CONNECT_SECONDS = 10.0
"""A server must be reached within this time, however long the stage's timeout is."""

CALL_SECONDS = 30.0
"""One call to a server may take no longer, even if no deadline is set."""

MIN_SECONDS = 0.05
"""The shortest time that a client is given to connect."""

LITE_SUFFIX = ".db"

_TOKEN_STEP: Final = "put the token (user:password, or an API key) in the environment variable that `token_env` names"  # noqa: S105
_URI_VARIABLE: Final = "MILVUS_URI"

INTERNALS_DIFFER: Final = (AttributeError, TypeError, KeyError, StageError)
"""Raised if a pymilvus version has other internals than we know; without them, we recover more slowly."""

Arguments = dict[str, Any]

_importing = threading.Lock()

# How soon gRPC connects again; by default it waits up to two minutes, and up to 20 s for one attempt.
_RECONNECTING: Final = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.min_reconnect_backoff_ms": 5000,
}


def check_uri(uri: str) -> str:
    """Return the URI without blanks around it.

    Raises:
        ConfigError: pymilvus cannot connect to it, or it may contain credentials. The message repeats none of it.
    """
    uri = uri.strip()
    if is_lite(uri) or uri.startswith("unix:"):
        return uri
    # The URI may hold a secret: no message repeats it, and the parser's error, which does, is not kept as a cause.
    try:
        parts = urlsplit(uri)
        valid = parts.scheme.lower() in ("http", "https", "tcp") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            "must be http://HOST:PORT, https://HOST:PORT, tcp://HOST:PORT, unix:PATH, or a path that ends in .db "
            "(Milvus Lite)",
            _TOKEN_STEP if "@" in uri else "",
        )
    if "@" in parts.netloc:
        raise ConfigError("must not contain user and password", _TOKEN_STEP)
    if parts.query or parts.fragment:
        raise ConfigError("must end with the host, the port or the database, without `?` or `#`", _TOKEN_STEP)
    return uri


def is_lite(uri: str) -> bool:
    """Whether the URI is a file of Milvus Lite."""
    return uri.endswith(LITE_SUFFIX) and "://" not in uri


def is_https(uri: str) -> bool:
    """Whether the URI asks for TLS."""
    return urlsplit(uri).scheme == "https"


def pymilvus_for(wanted_by: str) -> Any:
    """Return the module ``pymilvus``, with its log silenced: it logs every failed call with a traceback."""
    with _importing, _without_uri_variable():
        pymilvus = require("pymilvus", extra=None, wanted_by=wanted_by)
    for name in ("pymilvus", "milvus_lite"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() > logging.DEBUG:  # a user who turned on debugging sees everything
            logger.setLevel(logging.CRITICAL)
    return pymilvus


def connection_manager() -> Any:
    """Return pymilvus's internal module that manages its connections. Callers catch ``INTERNALS_DIFFER``."""
    return require("pymilvus.client.connection_manager", extra=None, wanted_by="milvus_search")


@contextmanager
def _without_uri_variable() -> Iterator[None]:
    """Hide ``MILVUS_URI`` from pymilvus, which reads it on import and fails if it is the path of a file.

    The variable is hidden only if necessary: other threads that read it meanwhile find it empty.
    """
    given = os.environ.get(_URI_VARIABLE)
    if "pymilvus" in sys.modules or "://" in (given or ""):
        yield
        return
    os.environ[_URI_VARIABLE] = ""  # not removed: pymilvus would then read it from a file `.env`
    try:
        yield
    finally:
        if given is None:
            del os.environ[_URI_VARIABLE]
        else:
            os.environ[_URI_VARIABLE] = given


class Connection:
    """An open connection to a server.

    Class attributes:
        is_lite: whether it is Milvus Lite.

    Args:
        client: a connected ``pymilvus.MilvusClient`` that nobody else uses.
        options: the arguments of an asynchronous client for the same server.

    Attributes:
        client: as above.
        closed: set when the connection is closed; whatever waits for something else must then give up.
        process: id of the process that made it. A forked child does not have the threads that it needs.
    """

    is_lite: ClassVar[bool] = False

    def __init__(self, client: Any, options: Arguments) -> None:
        self.client = client
        self.closed = threading.Event()
        self.process = os.getpid()
        self._options = options
        self._loops = LoopClients(self._async_client)
        _leave_recovery_to_grpc(client, _give_up)

    @classmethod
    def open(cls, uri: str, token: str, db_name: str, timeout: float, tls: TLS | None = None) -> Self:
        """Connect within ``timeout`` seconds.

        Raises:
            StageError: the server does not respond, or a file of ``tls`` is wrong.
            Exception: what pymilvus raises if it cannot connect.
        """
        pymilvus = pymilvus_for("milvus_search")
        deadline = Deadline.after(timeout)
        if tls is not None:
            tls.check_files()
        _await_response(uri, timeout, tls)
        # pymilvus waits for its channel that long; zero would be an error.
        left = max(MIN_SECONDS, deadline.remaining() or 0.0)
        # A dedicated connection can be closed; pymilvus keeps shared ones until the process ends.
        options = {"uri": uri, "token": token, "db_name": db_name, "dedicated": True, "grpc_options": _RECONNECTING}
        options |= {} if tls is None else tls.options()
        return cls(pymilvus.MilvusClient(**options, timeout=left), options)

    def call(self, deadline: Deadline, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the client within the deadline and ``CALL_SECONDS``."""
        deadline.check()
        return getattr(self.client, method)(*arguments, **options, timeout=deadline.remaining(at_most=CALL_SECONDS))

    def search(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``MilvusClient.search`` with these arguments, within the deadline."""
        deadline.check()
        with self._unless_closed():
            return self.client.search(**arguments, **_limits(deadline))

    async def asearch(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``search`` on this event loop's client. Cancelling it ends the call."""
        deadline.check()
        with self._unless_closed():
            if self.closed.is_set():
                raise closed_error()
            client = await self._loops.here()
            return await client.search(**arguments, **_limits(deadline))

    def load_state(self, collection: str, deadline: Deadline) -> str:
        """Return whether the collection is in memory: "Loaded", "Loading", "NotLoad" or "NotExist"."""
        return str(self.call(deadline, "get_load_state", collection)["state"].name)

    async def aload_state(self, collection: str, deadline: Deadline) -> str:
        """``load_state`` for an event loop."""
        deadline.check()
        with self._unless_closed():
            client = await self._loops.here()
            found = await client.get_load_state(collection, timeout=deadline.remaining(at_most=CALL_SECONDS))
            return str(found["state"].name)

    def marker(self, collection: str) -> object:
        """A value that changes with the collection, if it costs no call; always None for a server."""
        return None

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        """Report a search that fails because its connection was closed as such."""
        try:
            yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self.closed.is_set() or (task is not None and task.cancelling()):
                raise
            # gRPC cancels the calls of a closed channel; nobody cancelled the task.
            raise closed_error() from error
        except Exception as error:
            if not self.closed.is_set():
                raise
            raise closed_error() from error

    def _async_client(self) -> tuple[Any, Callable[[], Awaitable[None]]]:
        """A client for the running loop, which connects with its first call."""
        client = pymilvus_for("milvus_search").AsyncMilvusClient(**self._options)
        try:
            module = connection_manager()
            # Bypass pymilvus's connection manager, which never forgets a loop and connects to one server at a time.
            strategy = module.AsyncConnectionManager()._get_strategy(client._config)
            handler = strategy.create_handler(client._config)
            managed = module.ManagedConnection(handler=handler, config=client._config, strategy=strategy)
        except INTERNALS_DIFFER:
            return client, client.close
        client._handler = handler
        _leave_recovery_to_grpc(client, _agive_up)
        return client, lambda: strategy.close_async(managed)

    async def aclose_here(self) -> None:
        """Close the client of this event loop, if there is one. The next ``asearch`` on it makes another."""
        await self._loops.aclose_here()

    def close(self) -> None:
        """Close the connection; the clients of event loops that still run are closed by them."""
        self.closed.set()
        self._loops.close()
        self.client.close()


def _limits(deadline: Deadline) -> Arguments:
    """The arguments that limit a call. pymilvus makes it once: the stage repeats it."""
    return {"timeout": deadline.remaining(at_most=CALL_SECONDS), "retry_on_rate_limit": False}


def _leave_recovery_to_grpc(client: Any, give_up: Callable[[Exception], Any]) -> None:
    """Make the client's calls raise at once when they fail.

    pymilvus would repeat them beyond their timeout, and reconnect for up to 10 s whatever the timeout is, under a lock
    that all its clients in the process share. gRPC reconnects by itself.
    """
    with suppress(*INTERNALS_DIFFER):
        client._handler._on_rpc_error = give_up


def _give_up(error: Exception) -> NoReturn:
    raise error


async def _agive_up(error: Exception) -> NoReturn:
    raise error


def closed_error() -> StageError:
    """Return the error of a search whose connection was closed."""
    return StageError("the pipeline was closed while a query was running", "wait for running queries before closing it")


def _await_response(uri: str, seconds: float, tls: TLS | None = None) -> None:
    """Wait until the server at ``uri`` has accepted a connection, or refused it.

    pymilvus connects and closes under one lock of the whole process. So a server that takes connections but never
    responds must be waited for outside it, or every other client would wait, too.

    Raises:
        StageError: the server has done neither within that time.
    """
    grpc = require("grpc", extra=None, wanted_by="milvus_search")
    try:
        address = connection_manager().ConnectionConfig.from_uri(uri).address
    except INTERNALS_DIFFER:
        address = urlsplit(uri).netloc or uri
    channel = secure_channel(grpc, address, tls) if is_https(uri) else grpc.insecure_channel(address)
    states: queue.SimpleQueue[Any] = queue.SimpleQueue()
    deadline = Deadline.after(seconds)
    with channel:
        channel.subscribe(states.put, try_to_connect=True)
        try:
            # A refusal is left for pymilvus to find: its error says why.
            while states.get(timeout=deadline.remaining()).name not in ("READY", "TRANSIENT_FAILURE"):
                pass
        except queue.Empty:
            raise StageError(
                "the server did not answer in time",
                "check that it is healthy, or increase `timeout`",
                place=uri,
                reason_code="unavailable",
            ) from None
        finally:
            channel.unsubscribe(states.put)
