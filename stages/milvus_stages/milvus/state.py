"""The collection that a search has open: its connection, what is known about it, and how that is kept up to date."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from milvus_pipeline import DeadlineError, PipelineError, QueryError, StageError
from milvus_pipeline.plugin import Context, Deadline, breaker_for, retrying
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.lite import check_present
from milvus_stages.milvus.client.pool import connect, connections
from milvus_stages.milvus.client.server import (
    CALL_SECONDS,
    CONNECT_SECONDS,
    MIN_SECONDS,
    Connection,
    closed_error,
)
from milvus_stages.milvus.collection import CollectionState, UnfitError, inspect_collection, lost_fields
from milvus_stages.milvus.settings import SearchSettings

LOAD_SECONDS: Final = 120.0
"""Loading a collection may take this long. It continues when nobody waits for it any more."""

NOTICE_SECONDS: Final = 0.1
"""Time after which a wait notices that its caller has gone."""

_FRESH_SECONDS = 1.0  # for which an inspection of the collection is trusted
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between two questions whether it is loaded


class OpenCollection:
    """An open collection. It owns the connection, and the state that is replaced when the collection has changed.

    A collection that was dropped, changed or released is inspected, and loaded, in a thread that callers wait for
    within their own deadlines. However many queries find it changed, the server is asked once.

    Args:
        settings: of the search.
        connection: released by ``close``.
        state: what the collection was found to be.

    Attributes:
        settings: as above.
        connection: as above.
        state: what the collection was last found to be.
    """

    def __init__(self, settings: SearchSettings, connection: Connection, state: CollectionState) -> None:
        self.settings = settings
        self.connection = connection
        self.state = state
        self._first_dim = state.dim
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._renewal: Future[CollectionState] | None = None

    def close(self) -> None:
        """End a renewal, and release the connection."""
        with self._lock:
            self._closed.set()
        connections.release(self.connection)

    # -- trust in the state -------------------------------------------------------------------------------------

    def is_fresh(self, state: CollectionState) -> bool:
        """Whether the state was found a moment ago, and the collection is not known to have changed since."""
        return time.monotonic() - state.seen < _FRESH_SECONDS and not self._is_marked_anew(state)

    def is_doubtful(self, state: CollectionState, answers: Sequence[Any]) -> bool:
        """Whether the answers may come from another collection of this name, which the engines do not report."""
        if self._is_marked_anew(state):
            return True
        hit = next((answer[0] for answer in answers if len(answer)), None)
        fields = state.info.fields
        return hit is not None and any(
            name in fields and name != state.info.primary and name not in hit["entity"]
            for name in state.requested_fields
        )

    def is_whole(self, answers: Sequence[Any]) -> bool:
        """Whether only a loaded collection gives such answers: a server finds nothing in one that it releases."""
        return self.connection.is_lite or all(len(answer) for answer in answers)

    def dim_error(self, state: CollectionState, dim: int) -> PipelineError:
        """Return the error that queries of this dimension do not fit the collection."""
        if state.dim == self._first_dim:
            return QueryError(
                f"the query's vector has {dim} numbers, but the field {state.anns_field!r} holds vectors of "
                f"{state.dim}",
                "encode the query with the model that the collection was made with",
            )
        return StageError(
            f"the collection has changed: its field {state.anns_field!r} held vectors of {self._first_dim} numbers "
            f"when the stage was opened and holds vectors of {state.dim} now, but the query's vector has {dim}",
            "encode queries with the model that it is made with now, or rebuild it with theirs",
            place=self.settings.where,
            reason_code="schema_changed",
        )

    def _is_marked_anew(self, state: CollectionState) -> bool:
        return self.connection.marker(state.info.real_name) != state.info.marker

    # -- renewal ------------------------------------------------------------------------------------------------

    def load(self, deadline: Deadline) -> None:
        """Load the collection if it is not in memory, and wait for it until the deadline; loading continues after it.

        Raises:
            StageError: it may not be loaded, or does not become loaded.
            Exception: what pymilvus raises if the server cannot be asked.
        """
        if self.connection.load_state(self.settings.collection, deadline.sooner(CALL_SECONDS)) == "Loaded":
            return
        future = self.start_renewal(self.state)
        try:
            future.result(deadline.remaining())
        except TimeoutError:
            if future.done():
                raise

    def renew(self, doubted: CollectionState, deadline: Deadline, context: Context) -> CollectionState:
        """Return the collection as it is now, and loaded.

        Args:
            doubted: the state that may be out of date.
            deadline: of the wait.
            context: of the caller, who may give up.

        Raises:
            StageError: it is gone, does not fit the search any more, may not be loaded, or is not loaded in time.
            Exception: what pymilvus raises if the server cannot be asked.
        """
        future = self.start_renewal(doubted)
        while True:
            try:
                return future.result(deadline.remaining(at_most=NOTICE_SECONDS))
            except TimeoutError:
                if future.done():
                    raise
                if deadline.expired:
                    raise self._late(deadline) from None
                context.check()

    async def arenew(self, doubted: CollectionState, deadline: Deadline) -> CollectionState:
        """``renew`` for an event loop."""
        future = self.start_renewal(doubted)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done():
                raise
            raise self._late(deadline) from None

    def start_renewal(self, doubted: CollectionState) -> Future[CollectionState]:
        """Return the outcome of a renewal that is under way, or starts now, or has been made since ``doubted``."""
        with self._lock:
            if self._closed.is_set():
                raise closed_error()
            if self.state is not doubted:
                future: Future[CollectionState] = Future()
                future.set_result(self.state)
                return future
            if self._renewal is None:
                self._renewal = Future()
                self._renewal.set_running_or_notify_cancel()  # a caller's cancellation must not end it for the others
                arguments = (doubted, self._renewal)
                threading.Thread(target=self._renew, args=arguments, name="milvus-renewal", daemon=True).start()
            return self._renewal

    def _renew(self, doubted: CollectionState, future: Future[CollectionState]) -> None:
        error: Exception | None = None
        state = doubted
        try:
            state = self._inspect_again(doubted)
            if self._ensure_loaded():
                state = replace(state, loads=state.loads + 1)
            state = replace(state, calm=state.is_like(doubted))
        except Exception as raised:
            error = raised
        with self._lock:
            self._renewal = None
            if self._closed.is_set():
                error = closed_error()
            elif error is None:
                self.state = state
        if error is None:
            future.set_result(state)
        else:
            future.set_exception(error)

    def _inspect_again(self, doubted: CollectionState) -> CollectionState:
        try:
            now = inspect_collection(self.settings, self.connection, Deadline.after(CALL_SECONDS))
            if lost := lost_fields(doubted, now):
                raise UnfitError(lost, place=self.settings.where)
        except UnfitError as error:
            raise UnfitError(error.problems, place=self.settings.where, changed=True) from error
        return replace(now, loads=doubted.loads)

    def _ensure_loaded(self) -> bool:
        """Load the collection, or wait until it is loaded, for ``LOAD_SECONDS`` at most; whether that was needed."""
        settings, where = self.settings, self.settings.where
        deadline, pause = Deadline.after(LOAD_SECONDS), _FIRST_PAUSE
        while (state := self.connection.load_state(settings.collection, deadline)) != "Loaded":
            if state == "NotExist":
                step = "make it with `milvus-pipeline ingest`, or correct the name"
                raise StageError("the collection does not exist any more", step, place=where, reason_code="not_found")
            if state != "Loading":
                if not settings.load:
                    raise not_loaded_error(where)
                # pymilvus's own wait would not notice that nobody needs it any more.
                self.connection.client.load_collection(settings.collection, timeout=LOAD_SECONDS, _async=True)
            if self._closed.wait(pause):
                raise closed_error()
            if deadline.expired:
                what, step = f"is not loaded after {LOAD_SECONDS:g} s", "check the server's log and its memory"
                raise StageError(what, step, place=where, reason_code="not_loaded")
            pause = min(2 * pause, _LONGEST_PAUSE)
        return pause != _FIRST_PAUSE

    def _late(self, deadline: Deadline) -> DeadlineError:
        what = f"timed out after {deadline.budget:g} s while the collection was inspected or loaded"
        return DeadlineError(what, "retry later, or increase `timeout`", place=self.settings.where)


def not_loaded_error(where: str) -> StageError:
    """Return the error that a collection is not loaded, and that the stage may not load it."""
    what = "the collection is not loaded, and the stage may not load it (`load: false`)"
    return StageError(what, "load it, or set `load: true`", place=where, reason_code="not_loaded")


def open_connection(settings: SearchSettings, deadline: Deadline) -> Connection:
    """Connect, within the deadline and ``CONNECT_SECONDS``. The caller releases it from ``connections``.

    Raises:
        StageError: the server cannot be reached, or refuses.
    """
    limit = deadline.sooner(CONNECT_SECONDS)
    policy = retrying(settings.retry, limit, failures.is_transient)
    with failures.explained(settings.uri, settings.token_env):
        return policy(lambda: _acquire(settings, limit))


def open_collection(settings: SearchSettings, given: Deadline) -> OpenCollection:
    """Connect, and check that the collection fits the search. It need not be loaded yet.

    Args:
        settings: of the search.
        given: when the server must have answered; opening a Milvus Lite file is not limited.

    Raises:
        StageError: the server cannot be reached within ``CONNECT_SECONDS``, or the collection does not fit.
    """
    if settings.is_lite:
        check_present(settings.uri)
        given = Deadline()
    limit = given.sooner(CONNECT_SECONDS)

    def attempt() -> OpenCollection:
        with guarded_call(settings, limit.remaining()):
            connection = _acquire(settings, limit)
            try:
                deadline = given if connection.is_lite else given.sooner(CALL_SECONDS)
                return OpenCollection(settings, connection, inspect_collection(settings, connection, deadline))
            except BaseException:
                connections.release(connection)
                raise

    with failures.explained(settings.where, settings.token_env):
        return retrying(settings.retry, limit, failures.is_transient)(attempt)


def _acquire(settings: SearchSettings, limit: Deadline) -> Connection:
    seconds = max(MIN_SECONDS, limit.remaining() or 0.0)
    return connect(settings.uri, settings.token(), settings.db_name, seconds, settings.tls)


@contextmanager
def guarded_call(settings: SearchSettings, seconds: float | None) -> Iterator[None]:
    """Run a call to the server under the circuit breaker.

    Args:
        settings: of the search.
        seconds: the time the call has.

    Raises:
        CircuitOpenError: the call was not made, because the server has been failing.
    """
    if settings.breaker is None or settings.is_lite:
        yield
        return
    breaker = breaker_for((settings.uri, settings.db_name), f"Milvus at {settings.uri}", settings.breaker)

    def counts(error: Exception) -> bool | str | None:
        failed = failures.shows_unreachable(error, seconds)
        return failures.reason_of(error) if failed else failed  # the breaker reports the kind of the last failure

    with breaker.guarding(counts):
        yield
