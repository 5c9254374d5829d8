"""The pipeline: an ordered list of stages that a batch of queries flows through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from milvus_pipeline.config import file as _config
from milvus_pipeline.config.build import check_chain, check_names
from milvus_pipeline.config.collection import CollectionSpec
from milvus_pipeline.context import Deadline, time_limit
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.findings import Finding
from milvus_pipeline.problems import problems_of
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.doctor import CHECK_SECONDS, checking
from milvus_pipeline.run.dry_run import DryRun
from milvus_pipeline.run.lifecycle import Life, unclosed_told
from milvus_pipeline.run.loop import Call, adriven, allowed, driven, is_number, settled, started, steps
from milvus_pipeline.run.stream import Batches, Streamed, streamed
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import short_repr

AnyQuery = str | Query


class Pipeline:
    """Stages in the order they run.

    The pipeline opens itself at the first run. Use it as a context manager, or call ``close``, to let go of models
    and connections. It may be used by many threads and by the tasks of an event loop at the same time.

    Args:
        stages: at least one; their names differ, and each gets what it needs from those before it.
        name: leads every message, and is the tag of a TREC run.
        timeout: seconds that a call (a query, or a batch run together) may take; a call may say otherwise. It also
            bounds how long the servers of stages are waited for when the pipeline opens.
        collection: the collection that ``ingest`` makes for this pipeline.
        sweep: the variants of this pipeline that ``evaluate`` compares; see ``PipelineConfig``.

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
        sweep: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        for position, stage in enumerate(stages):
            if not isinstance(stage, Stage):
                raise ConfigError(f"stages[{position}]: must be a Stage, is {type(stage).__name__}")
        if not stages:
            raise ConfigError("stages: a pipeline needs at least one stage")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"name: must be a text that is not empty, is {short_repr(name)}")
        if timeout is not None and (not is_number(timeout) or timeout <= 0):
            raise ConfigError(f"timeout: must be a number of seconds above 0, is {short_repr(timeout)}")
        if problems := check_names(stages) + check_chain(stages):
            raise ConfigError(problems=problems)
        self.stages = tuple(stages)
        self.name = name
        self.timeout = timeout
        self.collection = _collection(collection)
        self.sweep = {path: list(values) for path, values in sweep.items()} if sweep else None
        self._all = tuple(member for stage in self.stages for member in stage.family())
        self._life = Life(name, self.stages)
        self._lock = threading.RLock()
        self._open = False

    # -- configuration ------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: _config.PipelineConfig | Mapping[str, Any]) -> Self:
        """The pipeline that a configuration, or plain data of its shape, describes."""
        if not isinstance(config, _config.PipelineConfig):
            config = _config.from_mapping(config)
        return cls(
            config.stages, name=config.name, timeout=config.timeout, collection=config.collection, sweep=config.sweep
        )

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
        return _config.to_data(
            self.stages, name=self.name, timeout=self.timeout, collection=self.collection, sweep=self.sweep
        )

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The configuration as YAML, also written to ``path`` if given. ``from_yaml`` reads an equal pipeline back."""
        text = _config.to_yaml(self.to_config())
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self._parts() == other._parts()

    def _parts(self) -> tuple[object, ...]:
        return (self.stages, self.name, self.timeout, self.collection, self.sweep)

    __hash__ = None  # type: ignore[assignment]  # equality is by value, and a pipeline is no key of anything

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}: {' -> '.join(stage.name for stage in self.stages)})"

    def stage(self, name: str) -> Stage:
        """The stage of this name, or the fallback. KeyError where there is none."""
        for stage in self._all:
            if stage.name == name:
                return stage
        raise KeyError(f"{self.name} has no stage {name!r}; it has {[stage.name for stage in self._all]}")

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
            self._life.open(self._all, self.timeout if timeout is None else timeout)
            self._open = True
        return self

    def close(self) -> None:
        """Close every stage, once the runs in flight are done. Without effect on a closed pipeline.

        Raises:
            StageError: a stage could not be closed; the others are.
        """
        self._life.close(self._taken())

    async def aopen(self, timeout: float | None = None) -> Self:
        """``open`` without blocking the event loop."""
        return self if self._open else await asyncio.to_thread(self.open, timeout)

    async def aclose(self) -> None:
        """``close`` without blocking the event loop."""
        await self._life.aclose(self._taken())

    def _taken(self) -> tuple[Stage, ...]:
        """The stages to close, which only the first of several callers gets."""
        with self._lock:
            stages, self._open = (self._all if self._open else ()), False
        return stages

    def _enter(self, timeout: float | None) -> None:
        """Open the pipeline, and hold its stages open for one run, whoever closes the pipeline meanwhile."""
        with self._lock:
            self.open(timeout)
            for stage in self._all:
                stage.open()

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
        seconds = allowed(timeout, self.timeout)
        self._enter(seconds)
        try:
            loop = steps(self._life.places, self.stages, started(queries), Deadline.after(seconds))
            results = driven(loop, lambda call: call.stage.process(call.results, call.context))
        finally:
            with unclosed_told():
                self._life.close(self._all)
        return settled(results, return_errors)

    def run_batches(
        self, batches: Iterable[Sequence[AnyQuery]], *, timeout: float | None = None, return_errors: bool = False
    ) -> Generator[list[SearchResult], None, None]:
        """Answer any number of batches in constant memory, with the stages at work on different ones.

        A batch is retrieved while the one before it is reranked: each stage that takes time has a thread. The results
        are those of ``run_batch``, as no batch is cut or joined with another, and a stage takes one at a time.

        Batches are read in the caller's thread, a little ahead of the results: one for each stage, and one more. A
        source that gives a batch only after it has seen the results of the last is one for ``run_batch``.

        Where the caller stops early (``close``, an exception, Ctrl-C), what is under way is told so, and waited for;
        after Ctrl-C two seconds at most.

        Args:
            batches: lists of texts or Query objects.
            timeout: seconds that each batch may take, its waits for the batches before it not counted; the pipeline's
                own by default.
            return_errors: give a failed query a result with status "failed" and its ``error``, instead of raising.

        Yields:
            For each batch, in their order, one result a query, in theirs.

        Raises:
            PipelineError: the first failed query's error, unless ``return_errors``, after the batches before its own.
            Exception: that of ``batches``, after the batches that were read before it.
        """
        return self._streamed(iter(batches), allowed(timeout, self.timeout), return_errors)

    def _streamed(self, batches: Batches, seconds: float | None, return_errors: bool) -> Streamed:
        self._enter(seconds)
        try:
            yield from streamed(self._life.places, self.stages, batches, seconds, return_errors)
        finally:
            with unclosed_told():
                self._life.close(self._all)

    async def arun(self, query: AnyQuery, *, timeout: float | None = None) -> SearchResult:
        """``run`` for an event loop. Cancelling it ends its waits at once."""
        return (await self.arun_batch([query], timeout=timeout))[0]

    async def arun_batch(
        self, queries: Sequence[AnyQuery], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[SearchResult]:
        """``run_batch`` for an event loop."""
        seconds = allowed(timeout, self.timeout)
        await self.aopen(seconds)
        self._enter(seconds)  # nothing is left to open: counting users takes no time, and cannot be cancelled half way
        try:
            loop = steps(self._life.places, self.stages, started(queries), Deadline.after(seconds))
            results = await adriven(loop, _awaited)
        finally:
            with unclosed_told():
                await self._life.aclose(self._all)
        return settled(results, return_errors)

    def run_stages(
        self, results: Sequence[SearchResult], start: int, stop: int, *, timeout: float | None = None
    ) -> list[SearchResult]:
        """Take results through some of the stages: ``stages[start:stop]``. For who wants to see what is between them.

        Taking results from stage to stage gives what ``run_batch`` gives, but for the deadline, which holds for each
        call of this method. The first stages start from ``SearchResult(query)``.

        Args:
            results: as the stages before left them; failed ones are handed on as they are.
            start: number of the first stage, from 0.
            stop: number of the stage before which it ends.
            timeout: seconds these stages may take; the pipeline's own by default.

        Returns:
            One result for each, in their order; those that failed have status "failed" and their ``error``.
        """
        seconds = allowed(timeout, self.timeout)
        self._enter(seconds)
        try:
            loop = steps(self._life.places, self.stages[start:stop], list(results), Deadline.after(seconds))
            return driven(loop, lambda call: call.stage.process(call.results, call.context))
        finally:
            with unclosed_told():
                self._life.close(self._all)

    # -- checking -----------------------------------------------------------------------------------------------

    def check(self, *, timeout: float = CHECK_SECONDS, send: bool = False) -> list[Finding]:
        """What can be verified before a first query, cheaply and without side effects; ``milvus-pipeline doctor``.

        Servers, collections, keys and models are looked at, stage by stage; nothing is loaded, changed or paid for.
        The pipeline need not be open.

        Args:
            timeout: seconds that the servers of each stage have to answer.
            send: also send one request of one short text to each hosted service, which may cost something.

        Returns:
            What was found, in the order of the stages, each followed by its fallback. Errors are findings, too.
        """
        stepwise = checking(self.stages, self.timeout, allowed(timeout, CHECK_SECONDS), send)
        return [finding for found in stepwise for finding in found]

    async def acheck(self, *, timeout: float = CHECK_SECONDS, send: bool = False) -> list[Finding]:
        """``check`` without blocking the event loop; cancelling it ends it with the stage that it is at."""
        stepwise = checking(self.stages, self.timeout, allowed(timeout, CHECK_SECONDS), send)
        findings: list[Finding] = []
        while (found := await asyncio.to_thread(next, stepwise, None)) is not None:
            findings += found
        return findings

    def dry_run(self, *, timeout: float | None = None) -> DryRun:
        """What a job would send to hosted rerankers, found out without sending it; see ``DryRun``.

        Args:
            timeout: seconds that servers have to answer when stages open, and that a batch may take; the pipeline's
                own by default.
        """
        return DryRun(self.name, self.stages, timeout=allowed(timeout, self.timeout))


async def _awaited(call: Call) -> Sequence[SearchResult]:
    """The outcome of a stage in an event loop, which gives it up at its deadline."""
    try:
        async with time_limit(call.context.deadline):
            return await call.stage.aprocess(call.results, call.context)
    except BaseException:
        call.context.cancel()  # a thread that works for the stage shall not go on for nobody
        raise


def _collection(given: CollectionSpec | Mapping[str, Any] | None) -> CollectionSpec | None:
    if given is None or isinstance(given, CollectionSpec):
        return given
    try:
        return CollectionSpec.model_validate(given)
    except ValidationError as error:
        raise ConfigError(problems=problems_of(error, CollectionSpec), place="collection") from error
