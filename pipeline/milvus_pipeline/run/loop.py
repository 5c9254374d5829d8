"""One run through the stages: order, timing, deadline, and what a failure does to a result.

The loop is a generator that yields calls and is sent their outcomes, so that it is written once (see ``driving``): a
blocking driver calls, an event loop's driver awaits, and that of a dry run calls something else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast, get_args

from milvus_pipeline.context import Context, Deadline
from milvus_pipeline.errors import DeadlineError, PipelineError, QueryError, ReasonCode, StageError
from milvus_pipeline.records import Query, SearchResult, StageReport, StageStatus, Status
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text, short_repr

Step = TypeVar("Step")
Result = TypeVar("Result")


def driven(steps: Generator[Step, Any, Result], do: Callable[[Step], Any]) -> Result:
    """What the generator returns, each of whose steps is done by ``do``."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as done:
        return cast("Result", done.value)


async def adriven(steps: Generator[Step, Any, Result], do: Callable[[Step], Awaitable[Any]]) -> Result:
    """``driven`` for an event loop, which ``do`` is awaited in. A cancellation is not the generator's to see."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = await do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as done:
        return cast("Result", done.value)


class Call(NamedTuple):
    """What the loop asks its driver to do: run this stage on these results."""

    stage: Stage
    results: list[SearchResult]
    context: Context


_ECHO = 40  # characters of a document by which its text is known in a message
_FEWEST = 8  # shorter beginnings are words that any message may hold
_EARLY = 0.002  # seconds

Steps: TypeAlias = Generator[Call, Sequence[SearchResult], list[SearchResult]]


def started(queries: Sequence[str | Query]) -> list[SearchResult]:
    """The results to start from; a query that cannot be run is failed already."""
    if isinstance(queries, str | Query):
        raise QueryError("run_batch takes a list of queries", "for a single one call run")
    return [_started(query, position) for position, query in enumerate(queries)]


def allowed(timeout: float | None, default: float | None) -> float | None:
    """The seconds that a call has: its own, else the pipeline's. QueryError where they are no number."""
    if timeout is not None and not is_number(timeout):
        raise QueryError(f"timeout: must be a number of seconds, is {short_repr(timeout)}")
    return default if timeout is None else timeout


def is_number(value: object) -> bool:
    """True for a finite number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def settled(results: list[SearchResult], return_errors: bool) -> list[SearchResult]:
    """The results; without ``return_errors`` the first failed query's error is raised."""
    if not return_errors:
        for result in results:
            if result.error is not None:
                raise result.error
    return results


def steps(where: Mapping[str, str], stages: Sequence[Stage], results: list[SearchResult], deadline: Deadline) -> Steps:
    """The loop over stages of a pipeline, all or some: yields a call, is sent its outcome or thrown its error.

    ``where`` holds the place of every stage in its pipeline, to lead messages; see ``life.places``.
    """
    for stage in stages:
        live = [index for index, result in enumerate(results) if result.status != "failed"]
        if not live:
            break
        done = yield from _done(stage, [results[index] for index in live], deadline, where)
        for index, result in zip(live, done, strict=True):
            results[index] = result
    return results


def _done(
    stage: Stage,
    before: list[SearchResult],
    deadline: Deadline,
    where: Mapping[str, str],
    stands_in_for: str | None = None,
) -> Steps:
    """What becomes of results in a stage and, where it fails on some of them, in its fallback."""
    context = Context(Deadline() if stage.instant else deadline.sooner(stage.timeout), len(before))
    began = time.perf_counter()
    after: Sequence[SearchResult] = before
    try:
        context.deadline.check()
        after = _checked((yield Call(stage, before, context)), len(before))
        _note_lateness(context)
    except Exception as error:
        after = before
        context.failures = dict.fromkeys(range(len(before)), _shared_error(error, where[stage.name], before, context))
    seconds = time.perf_counter() - began
    results = []
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        error_here = _placed(context.failures.get(position), where[stage.name], [old])
        report = _report(stage, old, new, seconds, context, position, error_here, stands_in_for)
        results.append(_reported(old, new, report))
    failed = sorted(context.failures)
    if stage.fallback is not None and failed:
        others = [results[position] for position in failed]
        stood_in = yield from _done(stage.fallback, others, deadline, where, stage.name)
        for position, result in zip(failed, stood_in, strict=True):
            results[position] = result
    return results


def _started(query: object, position: int) -> SearchResult:
    if isinstance(query, str):
        query = Query(query)
    if not isinstance(query, Query):
        return _unusable(Query(""), f"query {position} must be a string or a Query, is {type(query).__name__}")
    named = f"query {position}" if query.id is None else f"query {query.id!r}"
    if not isinstance(query.text, str):
        return _unusable(query, f"the text of {named} must be a string, is {type(query.text).__name__}")
    for field in ("params", "filter_params"):
        if not isinstance(value := getattr(query, field), Mapping):
            return _unusable(query, f"{field} of {named} must be a mapping, is {type(value).__name__}")
    if not query.text.strip() and query.vector is None:
        return _unusable(query, f"{named} is empty; give it a text, or a vector of its own")
    return SearchResult(query)


def _unusable(query: Query, message: str) -> SearchResult:
    return SearchResult(query, status="failed", error=QueryError(message))


def _checked(after: Sequence[SearchResult], count: int) -> Sequence[SearchResult]:
    """What a stage returned; StageError where it is not ``count`` results."""
    if not isinstance(after, Sequence) or not all(isinstance(result, SearchResult) for result in after):
        raise StageError("the stage must return a list of SearchResult")
    if len(after) != count:
        raise StageError(f"{count} results went in, but {len(after)} came out")
    return after


def _note_lateness(context: Context) -> None:
    """A blocking call cannot be cut short. Its result is there, so it is kept, and says that it is late."""
    if context.deadline.expired:
        context.warn(f"finished after the time given ({context.deadline.budget:g} s)")


def _shared_error(error: Exception, where: str, results: list[SearchResult], context: Context) -> PipelineError:
    """The error of all queries of a batch that failed together."""
    if isinstance(error, DeadlineError) or (isinstance(error, TimeoutError) and _is_up(context.deadline)):
        shared: PipelineError = DeadlineError(f"{where} did not finish: {_late(error, context.deadline)}")
    else:
        queries = "the query" if len(results) == 1 else f"{len(results)} queries"
        shared = StageError(f"{where} failed on {queries}: {_said(error, results)}", reason_code=_code(error))
    shared.__cause__ = error
    return shared


def _is_up(deadline: Deadline) -> bool:
    """Whether the time given is used up; an event loop's timer may ring a moment early."""
    left = deadline.remaining()
    return left is not None and left < _EARLY


def _code(error: Exception) -> ReasonCode:
    if isinstance(error, PipelineError):
        return error.reason_code
    # A plugin's call that was not answered in the time that the plugin itself gave it.
    return "unavailable" if isinstance(error, TimeoutError | ConnectionError) else "error"


def _late(error: Exception, deadline: Deadline) -> str:
    if isinstance(error, DeadlineError) or deadline.budget is None:
        return error_text(error)
    return error_text(deadline.error())


def _said(error: Exception, results: list[SearchResult]) -> str:
    """What an error says, unless it repeats a document."""
    if repeats(error, (hit.text for result in results for hit in result.hits if hit.text)):
        return f"{type(error).__name__}, whose message repeats a document and is left out; see the error's cause"
    return error_text(error)


def repeats(error: Exception, texts: Iterable[str]) -> bool:
    """Whether a foreign error repeats one of the texts, which do not belong in messages; ours never do."""
    if isinstance(error, PipelineError):
        return False
    message = error_text(error)
    return any(len(text) >= _FEWEST and text[:_ECHO] in message for text in texts)


def _placed(error: Exception | None, where: str, results: list[SearchResult]) -> PipelineError | None:
    """A stage's error for one query, led by where it happened."""
    if error is None or (isinstance(error, StageError) and str(error).startswith(where)):
        return error
    message = f"{where}: {_said(error, results)}"
    kind = next((kind for kind in (QueryError, DeadlineError) if isinstance(error, kind)), None)
    placed = kind(message) if kind else StageError(message, reason_code=_code(error))
    placed.__cause__ = error
    return placed


def _report(
    stage: Stage,
    before: SearchResult,
    after: SearchResult,
    seconds: float,
    context: Context,
    position: int,
    error: PipelineError | None,
    stands_in_for: str | None,
) -> StageReport:
    """What a stage did for one query."""
    status: StageStatus = "ok"
    reason, code = None, None
    if error is not None:
        status = "failed" if stage.on_error == "raise" else "skipped"
        reason, code = str(error), error.reason_code
    elif shortfall := context.partials[position]:
        status = "partial"
        reason, code = shortfall
    kept = before if error is not None else after
    return StageReport(
        stage=stage.name,
        type=stage.type,
        seconds=seconds,
        hits_in=len(before.hits),
        hits_out=0 if status == "failed" else len(kept.hits),
        status=status,
        reason=reason,
        reason_code=code,
        fallback_for=stands_in_for,
        # Copies: a stage that was given up at its deadline may still write into its context.
        warnings=tuple(context.warnings[position]),
        details=dict(context.details[position]),
        batch_size=context.size,
        error=error,
    )


_RESULTS: Final[Mapping[StageStatus, Status]] = {
    "ok": "ok",
    "partial": "partial",
    "skipped": "degraded",
    "failed": "failed",
}


def _reported(before: SearchResult, after: SearchResult, report: StageReport) -> SearchResult:
    """The result after a stage, with the stage's report; a failed stage leaves the hits as they were."""
    status = max(before.status, _RESULTS[report.status], key=get_args(Status).index)
    reports = [*before.reports, report]
    if report.status == "failed":
        return SearchResult(before.query, [], status, reports, report.error)
    kept = before if report.status == "skipped" else after
    return SearchResult(kept.query, kept.hits, status, reports)
