"""What to do where a collection is not what it was: look at it again, and load it, once for all who wait for it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from milvus_pipeline import DeadlineError, StageError
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages.milvus.client.server import CALL_SECONDS, Connection, closed_error, load_state
from milvus_stages.milvus.opening import LOAD_SECONDS, Opened

if TYPE_CHECKING:
    from milvus_stages.milvus.search import MilvusSearch

NOTICE_SECONDS = 0.1
"""Until a wait finds that nobody waits for its outcome."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between two looks at whether it is loaded


class Renewal:
    """Looks at a stage's collection again, in a thread of its own, which callers wait for within their deadlines.

    However many queries find the collection gone, changed or not loaded, the server is asked by one of them.

    Args:
        stage: whose ``_opened`` is replaced when the collection was looked at.
    """

    def __init__(self, stage: MilvusSearch) -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._running: Future[Opened] | None = None

    def begin(self, state: Opened, deadline: Deadline) -> None:
        """Have a collection that was just looked at loaded, and wait for it until the deadline, where it has one.

        Raises:
            StageError: it may not be loaded, or is not in time.
            Exception: whatever pymilvus raises where the server cannot be asked.
        """
        if load_state(state.connection, self._stage.collection, deadline.sooner(CALL_SECONDS)) == "Loaded":
            return
        future = self.begun(state)
        try:
            future.result(deadline.remaining())
        except TimeoutError:
            if future.done():
                raise

    def wait(self, doubted: Opened, deadline: Deadline, context: Context) -> Opened:
        """The collection as it is now, and loaded.

        Args:
            doubted: what was thought of it.
            deadline: of the wait.
            context: of the caller, who may wait no more.

        Raises:
            StageError: it is gone, or does not fit the stage any more, or may not be loaded, or is not in time.
            Exception: whatever pymilvus raises where the server cannot be asked.
        """
        future = self.begun(doubted)
        while True:
            try:
                return future.result(deadline.remaining(at_most=NOTICE_SECONDS))
            except TimeoutError:
                if future.done():
                    raise
                if deadline.expired:
                    raise self._late(deadline) from None
                context.check()

    async def await_(self, doubted: Opened, deadline: Deadline) -> Opened:
        """``wait`` for an event loop."""
        future = self.begun(doubted)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done():
                raise
            raise self._late(deadline) from None

    def begun(self, doubted: Opened) -> Future[Opened]:
        """The outcome to be: of a look that is under way, or begins now, or has been had since ``doubted``."""
        with self._lock:
            current = self._stage._opened
            if current is not None and current is not doubted:
                future: Future[Opened] = Future()
                future.set_result(current)
                return future
            if self._running is None:
                self._running = Future()
                self._running.set_running_or_notify_cancel()  # no caller's cancellation shall end it for the others
                arguments = (doubted, self._running)
                threading.Thread(target=self._renew, args=arguments, name="milvus-renewal", daemon=True).start()
            return self._running

    def end(self) -> None:
        """Have the thread give up, and leave the stage as it is then."""
        with self._lock:
            self._ended.set()

    def _renew(self, doubted: Opened, future: Future[Opened]) -> None:
        error: Exception | None = None
        state = doubted
        try:
            state = doubted.renewed()
            if ensure_loaded(self._stage, doubted.connection, self._ended):
                state = replace(state, loads=state.loads + 1)
            state = replace(state, calm=state.like(doubted))
        except Exception as raised:
            error = raised
        with self._lock:
            self._running = None
            if self._ended.is_set():
                error = closed_error()
            elif error is None:
                self._stage._opened = state
        if error is None:
            future.set_result(state)
        else:
            future.set_exception(error)

    def _late(self, deadline: Deadline) -> DeadlineError:
        return DeadlineError(
            (
                f"{self._stage.where} was still being looked at, or loaded, when the time given ("
                f"{deadline.budget:g} s) was used up"
            ),
            "come again later, or raise `timeout`",
        )


def ensure_loaded(stage: MilvusSearch, connection: Connection, ended: threading.Event) -> bool:
    """Load the collection, or wait until it is loaded, for ``LOAD_SECONDS`` at most; whether that was needed.

    Args:
        stage: the configuration.
        connection: to its server.
        ended: set where the wait shall end.

    Raises:
        StageError: it is gone, or not loaded, and the stage may not load it, or it takes too long.
    """
    deadline, pause = Deadline.after(LOAD_SECONDS), _FIRST_PAUSE
    while (state := load_state(connection, stage.collection, deadline)) != "Loaded":
        if state == "NotExist":
            raise StageError(
                f"{stage.where} is gone",
                "make it with `milvus-pipeline ingest`, or correct the name",
                reason_code="not_found",
            )
        if state != "Loading":
            if not stage.load:
                raise StageError(
                    f"{stage.where} is not loaded, and the stage may not load it (`load: false`)",
                    "load it, or set `load: true`",
                    reason_code="not_loaded",
                )
            # Not waited for by pymilvus, which would not notice that nobody wants it any more.
            connection.client.load_collection(stage.collection, timeout=LOAD_SECONDS, _async=True)
        if ended.wait(pause):
            raise closed_error()
        if deadline.expired:
            raise StageError(
                f"{stage.where} is not loaded after {LOAD_SECONDS:g} s",
                "look at the server's log and its memory",
                reason_code="not_loaded",
            )
        pause = min(2 * pause, _LONGEST_PAUSE)
    return pause != _FIRST_PAUSE
