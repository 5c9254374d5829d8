"""The searches of one batch: made, made again, made smaller, and what becomes of each query."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from milvus_pipeline import CircuitOpenError, DeadlineError, Hit, PipelineError, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, adrive, async_retrying, drive, in_threads, retrying
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.server import CALL_SECONDS, load_state
from milvus_stages.milvus.renewal import NOTICE_SECONDS
from milvus_stages.milvus.requests import Job, hits_of, jobs_of

if TYPE_CHECKING:
    from milvus_stages.milvus.opening import Opened
    from milvus_stages.milvus.search import MilvusSearch

_CALLS_AT_ONCE = 8  # searches of one batch that are under way, where their filters differ
_PAUSE_SECONDS = 0.1  # before a collection is searched again that is said to be loaded and not to be
_ROUNDS = 3  # of an attempt, where a collection changes while it is searched
_EARLY_SECONDS = 0.1  # by which the clocks of gRPC and of event loops may be before ours


class _Search(NamedTuple):
    """A step: search the collection in this state."""

    state: Opened
    deadline: Deadline


class _Look(NamedTuple):
    """A step: ask whether the collection is loaded."""

    state: Opened
    deadline: Deadline


class _Renew(NamedTuple):
    """A step: look at the collection again, of which this was thought."""

    doubted: Opened


class _Pause(NamedTuple):
    """A step: let so many seconds pass."""

    seconds: float


_Step: TypeAlias = _Search | _Look | _Renew | _Pause
_Attempt: TypeAlias = Generator[_Step, Any, tuple[Any, "Opened"]]


class Batch:
    """One batch of queries. ``hits`` are those of the queries that did not fail, by position, when it is done.

    Args:
        stage: open.
        results: the queries.
        context: for what is to be reported of each.
    """

    def __init__(self, stage: MilvusSearch, results: Sequence[SearchResult], context: Context) -> None:
        self.hits: dict[int, list[Hit]] = {}
        self._stage = stage
        self._context = context
        # Whoever awaits the batch gives it up at its deadline, and with it what other searches have found by then.
        self._deadline = context.deadline.before()
        self._first = stage.state()
        self._jobs = jobs_of(results, self._first, context)
        self._lock = threading.Lock()  # held where jobs are taken, added or given up

    def run(self) -> None:
        """Make the searches; of those with different filters a server has several under way, each in a thread.

        The threads end with the batch. Only if this one is interrupted (Ctrl-C), their last calls end after it.
        """
        count = 1 if self._first.connection.is_lite else min(_CALLS_AT_ONCE, len(self._jobs))
        if count > 1:
            in_threads(self._work, count, "milvus-search", self._rest_of_jobs)
        else:
            self._work()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            deadline = self._first.search_deadline(self._deadline)
            policy = retrying(self._stage.retry, deadline, self._retryable, _wait_hint, self._counting(job))
            policy.sleep = self._rest
            try:
                answer: Any = policy(self._answered, job, deadline)
            except Exception as error:
                self._after(error, job)
            else:
                self._read(answer[0], answer[1], job)

    async def arun(self) -> None:
        """``run`` for an event loop."""
        workers = (self._awork() for _ in range(min(_CALLS_AT_ONCE, len(self._jobs))))
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _awork(self) -> None:
        while (job := self._next_job()) is not None:
            deadline = self._first.search_deadline(self._deadline)
            policy = async_retrying(self._stage.retry, deadline, self._retryable, _wait_hint, self._counting(job))
            try:
                answer: Any = await policy(self._aanswered, job, deadline)
            except Exception as error:
                self._after(error, job)
            else:
                self._read(answer[0], answer[1], job)

    def _next_job(self) -> Job | None:
        with self._lock:
            return self._jobs.popleft() if self._jobs else None

    def _rest_of_jobs(self) -> list[Job]:
        """The jobs that nobody works at yet, which are given up."""
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
            return jobs

    # -- one attempt --------------------------------------------------------------------------------------------

    def _attempt(self, job: Job, deadline: Deadline) -> _Attempt:
        """The steps to an answer, and the state of the collection that it is read by."""
        state = self._stage.state()
        refused: Exception | None = None
        for round_ in range(_ROUNDS):
            if job.dim != state.dim:
                state = yield _Renew(state)
                if job.dim != state.dim:
                    raise state.misfit(job.dim)
            refused, lost, answers, sent = None, False, None, time.monotonic()
            limit = deadline if round_ == 0 else state.search_deadline(self._deadline)
            try:
                answers = yield _Search(state, limit)
            except Exception as error:
                # Not loaded, or loaded no more; gone; or of another kind than the search was made for.
                if not (failures.is_not_loaded(error) or failures.is_refusal(error)):
                    raise
                if failures.is_bad_filter(error) and state.fresh:
                    raise  # a crowd of them shall not have the collection looked at again and again
                refused, lost = error, failures.is_not_loaded(error)
            else:
                if not state.doubtful(answers):
                    if state.whole(answers) or (yield _Look(state, limit)) == "Loaded":
                        return answers, state
                    lost = True
            doubted, state = state, (yield from self._seen_again(state, sent, lost, limit))
            if state.like(doubted) and not lost:
                if refused is not None:
                    raise refused
                return answers, state
            if lost and state.calm:
                left = self._deadline.remaining()
                if round_ + 1 == _ROUNDS or (left is not None and left <= _PAUSE_SECONDS):
                    break
                yield _Pause(_PAUSE_SECONDS)
        raise refused or StageError(
            f"{self._stage.where} was released or changed again and again while it was searched",
            "find out by whom",
            reason_code="not_loaded",
        )

    def _seen_again(self, state: Opened, sent: float, lost: bool, limit: Deadline) -> Generator[_Step, Any, Opened]:
        """The collection as it is now.

        Args:
            state: what was thought of it.
            sent: when the search was sent that casts doubt on that (``time.monotonic`` seconds).
            lost: whether it is doubted only that the collection is loaded.
            limit: of a call.
        """
        known = lost and state.calm and state.fresh and not state.connection.is_lite
        if known and (yield _Look(state, limit)) == "Loaded":
            return state
        found: Opened = yield _Renew(state)
        if not lost and found.seen < sent and found.like(state):
            found = yield _Renew(found)  # that was a look of others, which a change may have come after
        return found

    def _answered(self, job: Job, deadline: Deadline) -> tuple[Any, Opened]:
        return drive(self._attempt(job, deadline), lambda step: self._done(step, job))

    def _done(self, step: _Step, job: Job) -> Any:
        if isinstance(step, _Renew):
            return self._stage.renewal.wait(step.doubted, self._deadline, self._context)
        if isinstance(step, _Pause):
            return self._rest(step.seconds)
        with self._stage.guarding(step.deadline.remaining(at_most=CALL_SECONDS)):
            if isinstance(step, _Look):
                return load_state(step.state.connection, self._stage.collection, step.deadline)
            return step.state.connection.search(job.arguments(step.state), step.deadline)

    async def _aanswered(self, job: Job, deadline: Deadline) -> tuple[Any, Opened]:
        return await adrive(self._attempt(job, deadline), lambda step: self._adone(step, job))

    async def _adone(self, step: _Step, job: Job) -> Any:
        if isinstance(step, _Renew):
            return await self._stage.renewal.await_(step.doubted, self._deadline)
        if isinstance(step, _Pause):
            return await asyncio.sleep(step.seconds)
        with self._stage.guarding(step.deadline.remaining(at_most=CALL_SECONDS)):
            if isinstance(step, _Look):
                return await step.state.connection.aload_state(self._stage.collection, step.deadline)
            return await step.state.connection.asearch(job.arguments(step.state), step.deadline)

    # -- between and after attempts -----------------------------------------------------------------------------

    def _retryable(self, error: BaseException) -> bool:
        return self._first.retryable(error, self._deadline)

    def _counting(self, job: Job) -> Any:
        def count(error: BaseException, seconds: float) -> None:
            for position in job.positions:
                self._context.note(position, retries=self._context.details[position].get("retries", 0) + 1)

        return count

    def _rest(self, seconds: float) -> None:
        """Wait between two attempts; not for long where the connection is closed or nobody waits any more."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._context.check()
            if self._first.connection.closed.wait(min(left, NOTICE_SECONDS)):
                return  # the next attempt says so

    def _after(self, error: Exception, job: Job) -> None:
        """What follows from a failed call: smaller calls, failed queries, or the end of the batch."""
        if failures.is_too_large(error) and len(job.positions) > 1:
            with self._lock:
                self._jobs.extendleft(reversed(job.halves()))
            return
        failed = [job]
        explained: Exception = error
        if not isinstance(error, PipelineError):
            stage = self._stage
            explained = failures.explained(error, stage.where, stage.token_env, job.expression, stage.load)
        if isinstance(error, TimeoutError | CircuitOpenError) or failures.is_transient(error):
            failed.extend(self._rest_of_jobs())  # they would wait for the same server
            explained = self._late(error) or explained
        for each in failed:
            for position in each.positions:
                self._context.fail(position, explained)

    def _late(self, error: Exception) -> DeadlineError | None:
        """That the time given is used up, where it is, rather than what the last attempt failed by."""
        if isinstance(error, DeadlineError):
            return error
        left = self._deadline.remaining()
        if left is None or left > (_EARLY_SECONDS if failures.is_timeout(error) else 0.0):
            return None
        late = self._deadline.error()
        late.__cause__ = error
        return late

    def _read(self, answers: Any, state: Opened, job: Job) -> None:
        """Turn the answers of a call into hits, and report on each query."""
        stage, context = self._stage, self._context
        if len(answers) != len(job.positions):
            error = StageError(
                f"there were {len(answers)} answers to {len(job.positions)} queries",
                "check that `uri` leads to Milvus",
                place=stage.where,
                reason_code="bad_reply",
            )
            for position in job.positions:
                context.fail(position, error)
            return
        for position, answer in zip(job.positions, answers, strict=True):
            try:
                found = hits_of(
                    answer,
                    stage=stage.name,
                    text_field=stage.text_field,
                    primary=state.info.primary,
                    fields=state.fields,
                    rising=stage.metric_type == "L2",
                    decimals=stage.round_decimal,
                )
            except StageError as error:
                context.fail(position, error)
                continue
            self.hits[position] = found
            context.note(position, returned=len(found), requested=stage.limit)
            if warning := state.shortfall(len(found), job.params, bool(job.expression)):
                context.warn(warning, position)


def _wait_hint(error: BaseException) -> float | None:
    return error.retry_after if isinstance(error, CircuitOpenError) else None
