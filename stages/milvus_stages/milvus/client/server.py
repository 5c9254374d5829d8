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

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Deadline, require
from milvus_stages.milvus.client.loops import LoopClients
from milvus_stages.milvus.client.tls import TLS, secure_channel

CONNECT_SECONDS = 10.0
"""A server must be reached within this time, however long a stage may otherwise take."""

CALL_SECONDS = 30.0
"""One call to a server may take no longer, also where no deadline is set."""

MIN_SECONDS = 0.05
"""The least time that a client is given to connect."""

LITE_SUFFIX = ".db"

_INSTEAD: Final = "; put the token (user:password, or an API key) in the environment variable that `token_env` names"
_URI_VARIABLE: Final = "MILVUS_URI"

INTERNALS_DIFFER: Final = (AttributeError, TypeError, KeyError, StageError)
"""What it fails with where a pymilvus lacks what we know of its inner parts: then we do without, and recover slower."""

Arguments = dict[str, Any]

_importing = threading.Lock()

# How soon gRPC tries to connect again; by default it lets up to two minutes pass, and as long as 20 s for one attempt.
_RECONNECTING: Final = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.min_reconnect_backoff_ms": 5000,
}


def check_uri(uri: str) -> str:
    """The URI without blanks around it.

    Raises:
        ValueError: pymilvus cannot connect to it, or it carries credentials, or might. The message holds none of it.
    """
    uri = uri.strip()
    if is_lite(uri) or uri.startswith("unix:"):
        return uri
    # No message repeats the URI, and no error of the parser, which does, is kept as a cause.
    try:
        parts = urlsplit(uri)
        right = parts.scheme.lower() in ("http", "https", "tcp") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise ValueError(
            "must be http://HOST:PORT, https://HOST:PORT, tcp://HOST:PORT, unix:PATH, or a path that ends in .db "
            f"(Milvus Lite){_INSTEAD if '@' in uri else ''}"
        )
    if "@" in parts.netloc:
        raise ValueError(f"must not hold user and password{_INSTEAD}")
    if parts.query or parts.fragment:
        raise ValueError(f"must end with the host, the port or the database, without `?` and `#`{_INSTEAD}")
    return uri


def is_lite(uri: str) -> bool:
    """Whether the URI is a file of Milvus Lite."""
    return uri.endswith(LITE_SUFFIX) and "://" not in uri


def is_https(uri: str) -> bool:
    """Whether the URI asks for TLS."""
    return urlsplit(uri).scheme == "https"


def pymilvus_for(wanted_by: str) -> Any:
    """The module ``pymilvus``, told to be quiet: it logs every failed call with a traceback, and we raise it."""
    with _importing, _without_uri_variable():
        pymilvus = require("pymilvus", extra=None, wanted_by=wanted_by)
    for name in ("pymilvus", "milvus_lite"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() > logging.DEBUG:  # whoever asked for debugging shall see it all
            logger.setLevel(logging.CRITICAL)
    return pymilvus


def connection_manager() -> Any:
    """The module of pymilvus that keeps its connections, an inner part: catch ``INTERNALS_DIFFER`` where it is used."""
    return require("pymilvus.client.connection_manager", extra=None, wanted_by="milvus_search")


@contextmanager
def _without_uri_variable() -> Iterator[None]:
    """Keep ``MILVUS_URI`` from pymilvus, which reads it when it is imported and fails where it names a file.

    Only where it has to be: what else reads the variable at this moment finds it empty.
    """
    given = os.environ.get(_URI_VARIABLE)
    if "pymilvus" in sys.modules or "://" in (given or ""):
        yield
        return
    os.environ[_URI_VARIABLE] = ""  # not removed: pymilvus would take it from a file `.env` then
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
        options: the arguments that an asynchronous client is made with.

    Attributes:
        closed: set once it is closed; what waits for something else shall then give up.
        process: the one that it was made in. The threads that it needs are not in those that are forked from it.
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
            StageError: the server does not say a word, or a file of ``tls`` is not what it should be.
            Exception: whatever pymilvus raises where it cannot connect.
        """
        pymilvus = pymilvus_for("milvus_search")
        deadline = Deadline.after(timeout)
        if tls is not None:
            tls.check_files()
        _await_a_word(uri, timeout, tls)
        # pymilvus waits for its channel as long as it is told; zero would be an error of its own.
        left = max(MIN_SECONDS, deadline.remaining() or 0.0)
        # A connection of its own can be closed; pymilvus keeps shared ones until the process ends.
        options = {"uri": uri, "token": token, "db_name": db_name, "dedicated": True, "grpc_options": _RECONNECTING}
        options |= {} if tls is None else tls.options()
        return cls(pymilvus.MilvusClient(**options, timeout=left), options)

    def call(self, deadline: Deadline, method: str, *arguments: Any) -> Any:
        """Call a method of the client within the deadline and ``CALL_SECONDS``."""
        deadline.check()
        return getattr(self.client, method)(*arguments, timeout=deadline.remaining(at_most=CALL_SECONDS))

    def search(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``MilvusClient.search`` with these arguments, within the deadline."""
        deadline.check()
        with self._unless_closed():
            return self.client.search(**arguments, **_once(deadline))

    async def asearch(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``search`` on this event loop's own client. Cancelling it ends the call."""
        deadline.check()
        with self._unless_closed():
            if self.closed.is_set():
                raise closed_error()
            client = await self._loops.here()
            return await client.search(**arguments, **_once(deadline))

    async def aload_state(self, collection: str, deadline: Deadline) -> str:
        """``load_state`` for an event loop."""
        deadline.check()
        with self._unless_closed():
            client = await self._loops.here()
            found = await client.get_load_state(collection, timeout=deadline.remaining(at_most=CALL_SECONDS))
            return str(found["state"].name)

    def marker(self, collection: str) -> object:
        """What is another once the collection is, where that costs nothing to find out; None where it does."""
        return None

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        """Say of a search that fails because its connection is closed that this is why."""
        try:
            yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self.closed.is_set() or (task is not None and task.cancelling()):
                raise
            # gRPC cancels the calls of a channel that is closed, and nobody the task.
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
            # Without pymilvus's manager of connections: it forgets no loop, and connects to one server at a time.
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


def _once(deadline: Deadline) -> Arguments:
    """The arguments that bound a call: pymilvus makes it once, since repeating it is the stage's business."""
    return {"timeout": deadline.remaining(at_most=CALL_SECONDS), "retry_on_rate_limit": False}


def _leave_recovery_to_grpc(client: Any, give_up: Callable[[Exception], Any]) -> None:
    """Have the client's calls fail at once where they fail.

    pymilvus would repeat them with waits that pass their timeout, and make a connection anew for up to 10 s whatever
    the timeout is, under a lock that all of its clients in the process share. gRPC connects again by itself.
    """
    with suppress(*INTERNALS_DIFFER):
        client._handler._on_rpc_error = give_up


def _give_up(error: Exception) -> NoReturn:
    raise error


async def _agive_up(error: Exception) -> NoReturn:
    raise error


def load_state(connection: Connection, collection: str, deadline: Deadline) -> str:
    """Whether the collection is in memory: Loaded, Loading, NotLoad or NotExist."""
    return str(connection.call(deadline, "get_load_state", collection)["state"].name)


def closed_error() -> StageError:
    """That a search found its connection closed."""
    return StageError("the stage was closed while the query ran", "close a pipeline when its queries are answered")


def _await_a_word(uri: str, seconds: float, tls: TLS | None = None) -> None:
    """Wait until the server at ``uri`` has answered a connection, or refused it.

    pymilvus connects under one lock of the whole process, and so does it close: a server that takes connections and
    says nothing has to be waited for outside of it, or every other client would wait, too.

    Raises:
        StageError: it has done neither within that time.
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
            # Also a refusal is for pymilvus to find, which says why.
            while states.get(timeout=deadline.remaining()).name not in ("READY", "TRANSIENT_FAILURE"):
                pass
        except queue.Empty:
            raise StageError(
                "the server did not answer in time",
                "check that it is well, or raise `timeout`",
                place=str(uri),
                reason_code="unavailable",
            ) from None
        finally:
            channel.unsubscribe(states.put)
