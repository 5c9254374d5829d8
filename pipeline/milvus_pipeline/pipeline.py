"""The pipeline: an ordered list of stages that a batch of queries flows through."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydantic import ValidationError

from milvus_pipeline import config as _config
from milvus_pipeline.collection import CollectionSpec
from milvus_pipeline.deadline import Deadline
from milvus_pipeline.errors import ConfigError, DeadlineError, PipelineError, QueryError, StageError, told
from milvus_pipeline.problems import describe
from milvus_pipeline.records import Query, SearchResult, StageReport, Status
from milvus_pipeline.stage import Context, Stage, check_chain, check_names

AnyQuery = str | Query


class _Call(NamedTuple):
    """What the loop over the stages asks its driver to do: run this stage on these results."""

    stage: Stage
    results: list[SearchResult]
    context: Context


class Pipeline:
    """Stages in the order they run.

    The pipeline opens itself at the first run. Use it as a context manager, or call ``close``, to let go of models
    and connections. It may be used by many threads and by the tasks of an event loop at the same time.

    Args:
        stages: at least one; their names differ, and each gets what it needs from those before it.
        name: leads every message, and is the tag of a TREC run.
        timeout: seconds a query may take through all stages; a call may say otherwise.
        collection: the collection that ``ingest`` makes for this pipeline.

    Raises:
        ConfigError: the stages do not fit together.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        name: str = "pipeline",
        timeout: float | None = None,
        collection: CollectionSpec | Mapping[str, Any] | None = None,
    ) -> None:
        for position, stage in enumerate(stages):
            if not isinstance(stage, Stage):
                raise ConfigError(f"stages[{position}]: must be a Stage, is {type(stage).__name__}")
        if not stages:
            raise ConfigError("stages: a pipeline needs at least one stage")
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"timeout: must be above 0 seconds, is {timeout}")
        if problems := check_names(stages) + check_chain(stages):
            raise ConfigError("\n".join(problems))
        self.stages = tuple(stages)
        self.name = name
        self.timeout = timeout
        self.collection = _collection(collection)
        self._lock = threading.RLock()
        self._open = False

    # -- configuration ------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: _config.PipelineConfig | Mapping[str, Any]) -> Self:
        """The pipeline that a configuration, or plain data of its shape, describes."""
        if not isinstance(config, _config.PipelineConfig):
            config = _config.from_mapping(config)
        return cls(config.stages, name=config.name, timeout=config.timeout, collection=config.collection)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Self:
        """The pipeline that a YAML file describes.

        Args:
            source: the file's path; a string with a line break in it is taken as the YAML text itself.

        Raises:
            ConfigError: with every problem of the file, each with its place and line.
        """
        if isinstance(source, str) and "\n" in source:
            return cls.from_config(_config.parse_config(source))
        return cls.from_config(_config.read_config(source))

    def to_config(self) -> dict[str, Any]:
        """The configuration as plain data, without what is at its default."""
        return _config.to_data(self.stages, name=self.name, timeout=self.timeout, collection=self.collection)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The configuration as YAML, also written to ``path`` if given. ``from_yaml`` reads an equal pipeline back."""
        text = _config.to_yaml(self.to_config())
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and (self.stages, self.name, self.timeout, self.collection) == (
            other.stages,
            other.name,
            other.timeout,
            other.collection,
        )

    __hash__ = None  # type: ignore[assignment]  # equality is by value, and a pipeline is no key of anything

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}: {' -> '.join(stage.name for stage in self.stages)})"

    def stage(self, name: str) -> Stage:
        """The stage of this name. KeyError where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(f"{self.name} has no stage {name!r}; it has {[stage.name for stage in self.stages]}")

    # -- life ---------------------------------------------------------------------------------------------------

    def open(self, timeout: float | None = None) -> Self:
        """Open every stage: load models, connect. Without effect on an open pipeline.

        Args:
            timeout: seconds that the server of a stage has to answer; the pipeline's own by default. Loading models
                is not bounded by it.

        Raises:
            StageError: a stage cannot be opened; those opened before it are closed again.
        """
        with self._lock:
            if self._open:
                return self
            opened: list[Stage] = []
            for position, stage in enumerate(self.stages):
                try:
                    stage.open(self.timeout if timeout is None else timeout)
                except Exception as error:
                    for done in reversed(opened):
                        done.close()
                    raise StageError(f"{self._at(position)} cannot be opened: {told(error)}") from error
                opened.append(stage)
            self._open = True
        return self

    def close(self) -> None:
        """Close every stage. Without effect on a closed pipeline."""
        with self._lock:
            if self._open:
                self._open = False
                for stage in reversed(self.stages):
                    stage.close()

    async def aopen(self, timeout: float | None = None) -> Self:
        """``open`` without blocking the event loop."""
        return self if self._open else await asyncio.to_thread(self.open, timeout)

    async def aclose(self) -> None:
        """``close`` without blocking the event loop."""
        with self._lock:
            stages, self._open = (self.stages if self._open else ()), False
        for stage in reversed(stages):
            await stage.aclose()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, query: AnyQuery, *, timeout: float | None = None) -> SearchResult:
        """Answer one query.

        Args:
            query: its text, or a Query.
            timeout: seconds it may take; the pipeline's own by default.

        Raises:
            QueryError: the query itself is bad.
            StageError: a stage failed whose ``on_error`` is "raise".
        """
        return self.run_batch([query], timeout=timeout)[0]

    def run_batch(
        self, queries: Sequence[AnyQuery], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[SearchResult]:
        """Answer several queries together; much cheaper than one at a time.

        Args:
            queries: texts or Query objects.
            timeout: seconds the batch may take; the pipeline's own by default.
            return_errors: give a failed query a result with status "failed" and its ``error``, instead of raising.

        Returns:
            One result a query, in their order.

        Raises:
            PipelineError: the first failed query's error, unless ``return_errors``.
        """
        self.open(timeout)
        steps = self._steps(_queries(queries), Deadline.after(self.timeout if timeout is None else timeout))
        try:
            call = next(steps)
            while True:
                try:
                    outcome = call.stage.process(call.results, call.context)
                except Exception as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(outcome)
        except StopIteration as done:
            return _settled(done.value, return_errors)

    async def arun(self, query: AnyQuery, *, timeout: float | None = None) -> SearchResult:
        """``run`` for an event loop. Cancelling it ends its waits at once."""
        return (await self.arun_batch([query], timeout=timeout))[0]

    async def arun_batch(
        self, queries: Sequence[AnyQuery], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[SearchResult]:
        """``run_batch`` for an event loop."""
        await self.aopen(timeout)
        steps = self._steps(_queries(queries), Deadline.after(self.timeout if timeout is None else timeout))
        try:
            call = next(steps)
            while True:
                try:
                    async with _time_limit(call.context.deadline):
                        outcome = await call.stage.aprocess(call.results, call.context)
                except Exception as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(outcome)
        except StopIteration as done:
            return _settled(done.value, return_errors)
        finally:
            steps.close()

    def _steps(
        self, results: list[SearchResult], deadline: Deadline
    ) -> Generator[_Call, Sequence[SearchResult], list[SearchResult]]:
        """The loop over the stages, for sync and async: yields a call, is sent its outcome or thrown its error."""
        for position, stage in enumerate(self.stages):
            live = [index for index, result in enumerate(results) if result.status != "failed"]
            if not live:
                break
            before = [results[index] for index in live]
            context = Context(deadline.sooner(stage.timeout), len(live))
            started = time.perf_counter()
            after: Sequence[SearchResult] = before
            try:
                context.deadline.check()
                after = yield _Call(stage, before, context)
                if len(after) != len(before):
                    raise StageError(f"{len(before)} results went in, but {len(after)} came out")
            except Exception as error:
                after = before
                shared = StageError(f"{self._at(position)} failed on {_count(len(live))}: {told(error)}")
                if isinstance(error, DeadlineError | TimeoutError):
                    shared = DeadlineError(f"{self._at(position)} did not finish: {_late(error, context.deadline)}")
                shared.__cause__ = error
                context.failures = dict.fromkeys(range(len(live)), shared)
            seconds = time.perf_counter() - started
            for place, index in enumerate(live):
                error_here = self._placed(context.failures.get(place), position)
                results[index] = _reported(stage, before[place], after[place], seconds, context, place, error_here)
        return results

    def _placed(self, error: Exception | None, position: int) -> PipelineError | None:
        """A stage's error for one query, led by where it happened."""
        if error is None or (isinstance(error, StageError) and str(error).startswith(self._at(position))):
            return error
        kind = QueryError if isinstance(error, QueryError) else StageError
        placed = kind(f"{self._at(position)}: {told(error)}")
        placed.__cause__ = error
        return placed

    def _at(self, position: int) -> str:
        return f"{self.name}: stages[{position}] ({self.stages[position].name})"


def _reported(
    stage: Stage,
    before: SearchResult,
    after: SearchResult,
    seconds: float,
    context: Context,
    place: int,
    error: PipelineError | None,
) -> SearchResult:
    """The result after a stage, with the stage's report; a failed stage leaves the hits as they were."""
    result = after if error is None else before
    failed = error is not None and stage.on_error == "raise"
    report = StageReport(
        stage=stage.name,
        type=stage.type,
        seconds=seconds,
        hits_in=len(before.hits),
        hits_out=0 if failed else len(result.hits),
        status="ok" if error is None else "failed" if failed else "skipped",
        reason=None if error is None else str(error),
        warnings=tuple(context.warnings[place]),
        details=context.details[place],
        batch_size=context.size,
    )
    status: Status = result.status if error is None else "failed" if failed else "degraded"
    hits = [] if failed else result.hits
    return SearchResult(result.query, hits, status, [*before.reports, report], error if failed else None)


def _settled(results: list[SearchResult], return_errors: bool) -> list[SearchResult]:
    if not return_errors:
        for result in results:
            if result.error is not None:
                raise result.error
    return results


def _queries(queries: Sequence[AnyQuery]) -> list[SearchResult]:
    """The results to start from; a query that cannot be run is failed already."""
    if isinstance(queries, str | Query):
        raise QueryError("run_batch takes a list of queries; for a single one call run")
    return [_started(query, position) for position, query in enumerate(queries)]


def _started(query: object, position: int) -> SearchResult:
    if isinstance(query, str):
        query = Query(query)
    if not isinstance(query, Query):
        raise QueryError(f"query {position} must be a string or a Query, is {type(query).__name__}")
    if not isinstance(query.text, str):
        raise QueryError(f"the text of query {position} must be a string, is {type(query.text).__name__}")
    if not query.text.strip() and query.vector is None:
        named = f"query {position}" if query.id is None else f"query {query.id!r}"
        error = QueryError(f"{named} is empty; give it a text, or a vector of its own")
        return SearchResult(query, status="failed", error=error)
    return SearchResult(query)


def _collection(given: CollectionSpec | Mapping[str, Any] | None) -> CollectionSpec | None:
    if given is None or isinstance(given, CollectionSpec):
        return given
    try:
        return CollectionSpec.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(f"collection: {line}" for line in describe(error, CollectionSpec))) from error


def _time_limit(deadline: Deadline) -> AbstractAsyncContextManager[Any]:
    left = deadline.remaining()
    return nullcontext() if left is None else asyncio.timeout(left)


def _late(error: Exception, deadline: Deadline) -> str:
    if isinstance(error, DeadlineError) or deadline.budget is None or not deadline.expired:
        return told(error)
    return f"the time given ({deadline.budget:g} s) is used up; raise `timeout` or ask for less"


def _count(queries: int) -> str:
    return "the query" if queries == 1 else f"{queries} queries"
