"""One run of a batch through the stages: order, timing, deadlines, and the effect of a failure on a result.

The loop is a generator: it yields calls of stages and is sent their outcomes. So it is written once, and its drivers
differ: one calls the stages, one awaits them, that of a dry run calls another method.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, get_args

from milvus_pipeline.context import Context, Deadline
from milvus_pipeline.errors import DeadlineError, PipelineError, QueryError, ReasonCode, StageError
from milvus_pipeline.records import Query, SearchResult, StageReport, StageStatus, Status
from milvus_pipeline.run.lifecycle import PlacedStage
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_parts, error_text


class StageCall(NamedTuple):
    """A step of the loop: have the stage work on these results."""

    stage: Stage
    results: list[SearchResult]
    context: Context


StageCalls: TypeAlias = Generator[StageCall, Sequence[SearchResult], list[SearchResult]]


def process(call: StageCall) -> Sequence[SearchResult]:
    """Do a step of the loop: the driver of blocking runs."""
    return call.stage.process(call.results, call.context)


def run_stages(stages: Sequence[PlacedStage], results: list[SearchResult], deadline: Deadline) -> StageCalls:
    """The loop over stages of a pipeline, all or some; failed results are not passed on to a stage."""
    for stage in stages:
        live = [index for index, result in enumerate(results) if result.status != "failed"]
        if not live:
            break
        after = yield from _run_stage(stage, [results[index] for index in live], deadline)
        for index, result in zip(live, after, strict=True):
            results[index] = result
    return results


def _run_stage(
    placed: PlacedStage, before: list[SearchResult], deadline: Deadline, fallback_for: str | None = None
) -> StageCalls:
    """The results after a stage; those that it failed on go through its fallback, if it has one."""
    stage = placed.stage
    context = Context(Deadline() if stage.instant else deadline.sooner(stage.timeout), len(before))
    started = time.perf_counter()
    shared: PipelineError | None = None  # the error of a batch that failed as a whole
    after: Sequence[SearchResult] = before
    try:
        context.deadline.check()
        after = _check_output((yield StageCall(stage, before, context)), len(before))
        if context.deadline.expired:  # a blocking call cannot be cut short; its result is there, so it is kept
            context.warn(f"finished after its time limit of {context.deadline.budget:g} s")
    except Exception as error:
        after = before
        shared = _stage_error(error, placed.place, before, context.deadline)
        context.failures = dict.fromkeys(range(len(before)), error)
    seconds = time.perf_counter() - started
    results = []
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        own = shared
        if own is None and position in context.failures:
            own = _stage_error(context.failures[position], placed.place, [old], context.deadline)
        results.append(_with_report(stage, old, new, seconds, context, position, own, fallback_for))
    failed = sorted(context.failures)
    if placed.fallback is not None and failed:
        others = [results[position] for position in failed]
        replaced = yield from _run_stage(placed.fallback, others, deadline, stage.name)
        for position, result in zip(failed, replaced, strict=True):
            results[position] = result
    return results


def _check_output(after: Sequence[SearchResult], count: int) -> Sequence[SearchResult]:
    """Return what a stage returned. StageError if it is not ``count`` results."""
    if not isinstance(after, Sequence) or not all(isinstance(result, SearchResult) for result in after):
        raise StageError("the stage must return a list of SearchResult")
    if len(after) != count:
        raise StageError(f"{count} results went in, but {len(after)} came out")
    return after


# -- results ----------------------------------------------------------------------------------------------------------


def initial_results(queries: Sequence[str | Query]) -> list[SearchResult]:
    """Return the results that a run starts from; a query that cannot be run has failed already."""
    if isinstance(queries, str | Query):
        raise QueryError("run_batch takes a list of queries", "for a single one call run")
    return [_initial_result(query, position) for position, query in enumerate(queries)]


def _initial_result(query: object, position: int) -> SearchResult:
    if isinstance(query, str):
        query = Query(query)
    error = None
    if not isinstance(query, Query):
        query, error = Query(""), QueryError(f"must be a string or a Query, got {type(query).__name__}")
    elif not isinstance(query.text, str):
        error = QueryError(f"`text` must be a string, got {type(query.text).__name__}")
    elif wrong := [name for name in ("params", "filter_params") if not isinstance(getattr(query, name), Mapping)]:
        error = QueryError(f"`{wrong[0]}` must be a mapping, got {type(getattr(query, wrong[0])).__name__}")
    elif not query.text.strip() and query.vector is None:
        error = QueryError("is empty", "give it a text or a vector")
    if error is None:
        return SearchResult(query)
    return SearchResult(
        query, status="failed", error=error.at(f"query {position}" if query.id is None else f"query {query.id!r}")
    )


def unwrap(results: list[SearchResult], *, return_errors: bool) -> list[SearchResult]:
    """Return the results; without ``return_errors`` raise the first failed query's error."""
    if not return_errors:
        for result in results:
            if result.error is not None:
                raise result.error
    return results


_RESULT_STATUS: Final[Mapping[StageStatus, Status]] = {
    "ok": "ok",
    "partial": "partial",
    "skipped": "degraded",
    "failed": "failed",
}


def _with_report(
    stage: Stage,
    before: SearchResult,
    after: SearchResult,
    seconds: float,
    context: Context,
    position: int,
    error: PipelineError | None,
    fallback_for: str | None,
) -> SearchResult:
    """The result after a stage with the stage's report; a stage that was skipped leaves the hits as they were."""
    status: StageStatus = "ok"
    reason, code = None, None
    if error is not None:
        status = "failed" if stage.on_error == "raise" else "skipped"
        reason, code = str(error), error.reason_code
        after = before.with_hits([]) if status == "failed" else before
    elif shortfall := context.partials[position]:
        status = "partial"
        reason, code = shortfall
    report = StageReport(
        stage=stage.name,
        type=stage.type,
        seconds=seconds,
        hits_in=len(before.hits),
        hits_out=len(after.hits),
        status=status,
        reason=reason,
        reason_code=code,
        fallback_for=fallback_for,
        # Copies: a stage that was abandoned at its deadline may still write into its context.
        warnings=tuple(context.warnings[position]),
        details=dict(context.details[position]),
        batch_size=context.size,
        error=error,
    )
    whole = max(before.status, _RESULT_STATUS[status], key=get_args(Status).index)
    failure = error if status == "failed" else None
    return SearchResult(after.query, after.hits, whole, [*before.reports, report], failure)


# -- errors -----------------------------------------------------------------------------------------------------------

_ECHO = 40  # characters of a document that identify it in a message
_SHORTEST_ECHO = 8  # shorter beginnings are words that any message may contain
_EARLY = 0.002  # seconds by which the timer of an event loop may fire before the deadline


def _stage_error(error: Exception, place: str, results: list[SearchResult], deadline: Deadline) -> PipelineError:
    """The error of a stage, with its place in the pipeline."""
    left = deadline.remaining()
    late = isinstance(error, TimeoutError) and not isinstance(error, PipelineError)
    if late and left is not None and left < _EARLY:
        what, next_step = error_parts(deadline.error())
    else:
        late = isinstance(error, DeadlineError)
        what, next_step = safe_parts(error, (hit.text for result in results for hit in result.hits if hit.text))
    placed: PipelineError
    if late:
        placed = DeadlineError(what, next_step, place=place)
    elif isinstance(error, QueryError):
        placed = QueryError(what, next_step, place=place)
    else:
        placed = StageError(what, next_step, place=place, reason_code=_reason_code(error))
    placed.__cause__ = error
    return placed


def _reason_code(error: Exception) -> ReasonCode:
    if isinstance(error, PipelineError):
        return error.reason_code
    # A timeout of a plugin's own call: the deadline of the stage is not over.
    return "unavailable" if isinstance(error, TimeoutError | ConnectionError) else "error"


def safe_parts(error: Exception, texts: Iterable[str]) -> tuple[str, str]:
    """What an error says and what to do, without its message if that repeats one of the texts; ours never do."""
    if not isinstance(error, PipelineError):
        message = error_text(error)
        if any(len(text) >= _SHORTEST_ECHO and text[:_ECHO] in message for text in texts):
            what = f"{type(error).__name__}, whose message repeats a document and is left out"
            return what, "see the cause of the error"
    return error_parts(error)
