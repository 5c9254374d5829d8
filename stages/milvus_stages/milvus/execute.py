"""The searches of one batch: made, repeated, split, and turned into hits or failures of each query."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from milvus_pipeline import CircuitOpenError, DeadlineError, Hit, PipelineError, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, adrive, async_retrying, drive, in_threads, retrying
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.server import CALL_SECONDS
from milvus_stages.milvus.collection import CollectionState
from milvus_stages.milvus.requests import Request, read_hits, requests_for
from milvus_stages.milvus.state import NOTICE_SECONDS, OpenCollection, guarded_call

_CALLS_AT_ONCE = 8  # searches of one batch that are under way at once, if their filters differ
_PAUSE_SECONDS = 0.1  # before a collection is searched again that is said to be both loaded and not loaded
_ROUNDS = 3  # of an attempt, if the collection changes while it is searched
_EARLY_SECONDS = 0.1  # by which the clocks of gRPC and of event loops may be ahead of ours


class _Search(NamedTuple):
    """A step: search the collection in this state."""

    state: CollectionState
    deadline: Deadline


class _AskIfLoaded(NamedTuple):
    """A step: ask whether the collection is loaded."""

    deadline: Deadline


class _Renew(NamedTuple):
    """A step: inspect the collection again, because this state may be out of date."""

    doubted: CollectionState


class _Pause(NamedTuple):
    """A step: wait."""

    seconds: float


_Step: TypeAlias = _Search | _AskIfLoaded | _Renew | _Pause
_Answer: TypeAlias = tuple[Any, CollectionState]


class BatchSearch:
    """The searches of one batch of queries. Blocking callers and event loops drive the same generators.

    Args:
        collection: open.
        results: the queries.
        context: for what is reported about each query.

    Attributes:
        hits: of the queries that did not fail, by position; complete after ``run`` or ``arun``.
    """

    def __init__(self, collection: OpenCollection, results: Sequence[SearchResult], context: Context) -> None:
        self.hits: dict[int, list[Hit]] = {}
        self._collection = collection
        self._settings = collection.settings
        self._is_lite = collection.connection.is_lite
        self._context = context
        # The caller gives the batch up at its deadline, and would lose what other searches have found by then.
        self._deadline = context.deadline.before()
        self._requests = requests_for(results, collection.state, context)
        self._lock = threading.Lock()  # held while requests are taken, added or given up

    def run(self) -> None:
        """Make the searches. On a server, those with different filters run at once, each in a thread.

        The threads end with the batch; only after Ctrl-C may their last calls end later.
        """
        count = 1 if self._is_lite else min(_CALLS_AT_ONCE, len(self._requests))
        if count > 1:
            in_threads(lambda: drive(self._work(), self._try), count, "milvus-search", self._take_all)
        else:
            drive(self._work(), self._try)

    async def arun(self) -> None:
        """``run`` for an event loop."""
        workers = (adrive(self._work(), self._atry) for _ in range(min(_CALLS_AT_ONCE, len(self._requests))))
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _work(self) -> Generator[Request, _Answer, None]:
        """Take requests until none is left. Each step is a request to be answered, with repetitions."""
        while (request := self._take()) is not None:
            try:
                answers, state = yield request
            except Exception as error:
                self._handle_failure(error, request)
            else:
                self._read(answers, state, request)

    def _take(self) -> Request | None:
        with self._lock:
            return self._requests.popleft() if self._requests else None

    def _take_all(self) -> list[Request]:
        with self._lock:
            requests = list(self._requests)
            self._requests.clear()
            return requests

    # -- one request, with repetitions --------------------------------------------------------------------------

    def _try(self, request: Request) -> Any:
        deadline = self._call_deadline()
        policy = retrying(*self._policy(request, deadline))
        policy.sleep = self._sleep
        return policy(lambda: drive(self._attempt(request, deadline), partial(self._do, request)))

    async def _atry(self, request: Request) -> Any:
        deadline = self._call_deadline()

        async def attempt() -> Any:
            return await adrive(self._attempt(request, deadline), partial(self._ado, request))

        return await async_retrying(*self._policy(request, deadline))(attempt)

    def _policy(self, request: Request, deadline: Deadline) -> tuple[Any, ...]:
        """The arguments of ``retrying``."""
        on_wait = partial(self._count_retry, request)
        return self._settings.retry, deadline, self._is_retryable, _wait_hint, on_wait

    def _call_deadline(self) -> Deadline:
        """When a search and its repetitions must be done: as given, or else soon, so that no server can hang it.

        A search of Milvus Lite is work of this process, so it is not limited here.
        """
        given = self._deadline
        return given if given.at is not None or self._is_lite else Deadline.after(CALL_SECONDS)

    def _is_retryable(self, error: BaseException) -> bool:
        if isinstance(error, CircuitOpenError):
            return self._deadline.at is None  # worth waiting for only if the caller set no limit
        # With Milvus Lite, only loading passes.
        return failures.is_not_loaded(error) if self._is_lite else failures.is_transient(error)

    def _count_retry(self, request: Request, error: BaseException, seconds: float) -> None:
        for position in request.positions:
            self._context.note(position, retries=self._context.details[position].get("retries", 0) + 1)

    def _sleep(self, seconds: float) -> None:
        """Wait between two attempts, until the connection is closed or the caller gives up."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._context.check()
            if self._collection.connection.closed.wait(min(left, NOTICE_SECONDS)):
                return  # the next attempt reports it

    # -- one attempt --------------------------------------------------------------------------------------------

    def _attempt(self, request: Request, deadline: Deadline) -> Generator[_Step, Any, _Answer]:
        """The steps to an answer, and the state of the collection that it is read by."""
        collection = self._collection
        state = collection.state
        refused: Exception | None = None
        for round_ in range(_ROUNDS):
            if request.dim != state.dim:
                state = yield _Renew(state)
                if request.dim != state.dim:
                    raise collection.dim_error(state, request.dim)
            refused, lost, answers, sent = None, False, None, time.monotonic()
            limit = deadline if round_ == 0 else self._call_deadline()
            try:
                answers = yield _Search(state, limit)
            except Exception as error:
                # The collection may be gone, no longer loaded, or different from what the search was made for.
                if not (failures.is_not_loaded(error) or failures.is_refusal(error)):
                    raise
                if failures.is_bad_filter(error) and collection.is_fresh(state):
                    raise  # many bad filters must not have the collection inspected again for each
                refused, lost = error, failures.is_not_loaded(error)
            else:
                if not collection.is_doubtful(state, answers):
                    if collection.is_whole(answers) or (yield _AskIfLoaded(limit)) == "Loaded":
                        return answers, state
                    lost = True
            doubted, state = state, (yield from self._renew(state, sent, lost, limit))
            if state.is_like(doubted) and not lost:
                if refused is not None:
                    raise refused
                return answers, state
            if lost and state.calm:
                left = self._deadline.remaining()
                if round_ + 1 == _ROUNDS or (left is not None and left <= _PAUSE_SECONDS):
                    break
                yield _Pause(_PAUSE_SECONDS)
        raise refused or StageError(
            "the collection kept being released or changed while it was searched",
            "find out which program does that",
            place=self._settings.where,
            reason_code="not_loaded",
        )

    def _renew(
        self, state: CollectionState, sent: float, lost: bool, limit: Deadline
    ) -> Generator[_Step, Any, CollectionState]:
        """The collection as it is now.

        Args:
            state: that may be out of date.
            sent: when the search was sent that casts doubt on it (``time.monotonic`` seconds).
            lost: the only doubt is whether the collection is loaded.
            limit: of a call.
        """
        known = lost and state.calm and not self._is_lite and self._collection.is_fresh(state)
        if known and (yield _AskIfLoaded(limit)) == "Loaded":
            return state
        found: CollectionState = yield _Renew(state)
        if not lost and found.seen < sent and found.is_like(state):
            found = yield _Renew(found)  # another query's renewal, which a change may have followed
        return found

    def _do(self, request: Request, step: _Step) -> Any:
        collection = self._collection
        if isinstance(step, _Renew):
            return collection.renew(step.doubted, self._deadline, self._context)
        if isinstance(step, _Pause):
            return self._sleep(step.seconds)
        with guarded_call(self._settings, step.deadline.remaining(at_most=CALL_SECONDS)):
            if isinstance(step, _AskIfLoaded):
                return collection.connection.load_state(self._settings.collection, step.deadline)
            return collection.connection.search(request.arguments(step.state), step.deadline)

    async def _ado(self, request: Request, step: _Step) -> Any:
        collection = self._collection
        if isinstance(step, _Renew):
            return await collection.arenew(step.doubted, self._deadline)
        if isinstance(step, _Pause):
            return await asyncio.sleep(step.seconds)
        with guarded_call(self._settings, step.deadline.remaining(at_most=CALL_SECONDS)):
            if isinstance(step, _AskIfLoaded):
                return await collection.connection.aload_state(self._settings.collection, step.deadline)
            return await collection.connection.asearch(request.arguments(step.state), step.deadline)

    # -- outcomes -----------------------------------------------------------------------------------------------

    def _handle_failure(self, error: Exception, request: Request) -> None:
        """Split the request, fail its queries, or end the batch."""
        if failures.is_too_large(error) and len(request.positions) > 1:
            with self._lock:
                self._requests.extendleft(reversed(request.split((len(request.positions) + 1) // 2)))
            return
        failed, settings = [request], self._settings
        explained: Exception = error
        if not isinstance(error, PipelineError):
            explained = failures.explain(error, settings.where, settings.token_env, request.expression, settings.load)
        if isinstance(error, TimeoutError | CircuitOpenError) or failures.is_transient(error):
            failed.extend(self._take_all())  # they would wait for the same server
            explained = self._late(error) or explained
        for each in failed:
            self._fail(each, explained)

    def _late(self, error: Exception) -> DeadlineError | None:
        """The error that the time is used up, if it is: it says more than what the last attempt failed with."""
        if isinstance(error, DeadlineError):
            return error
        left = self._deadline.remaining()
        if left is None or left > (_EARLY_SECONDS if failures.is_timeout(error) else 0.0):
            return None
        late = self._deadline.error()
        late.__cause__ = error
        return late

    def _fail(self, request: Request, error: Exception) -> None:
        for position in request.positions:
            self._context.fail(position, error)

    def _read(self, answers: Any, state: CollectionState, request: Request) -> None:
        """Turn the answers of a call into hits, and report on each query."""
        settings, context = self._settings, self._context
        if len(answers) != len(request.positions):
            what = f"got {len(answers)} answers to {len(request.positions)} queries"
            step = "check that `uri` leads to Milvus"
            self._fail(request, StageError(what, step, place=settings.where, reason_code="bad_reply"))
            return
        for position, answer in zip(request.positions, answers, strict=True):
            try:
                found = read_hits(answer, state)
            except StageError as error:
                context.fail(position, error)
                continue
            self.hits[position] = found
            context.note(position, returned=len(found), requested=settings.limit)
            if warning := state.shortfall(len(found), request.params, bool(request.expression)):
                context.warn("; ".join(warning), position)


def _wait_hint(error: BaseException) -> float | None:
    return error.retry_after if isinstance(error, CircuitOpenError) else None
