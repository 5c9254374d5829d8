"""The pipeline: an ordered list of stages that a batch of queries flows through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from milvus_pipeline.config import file as _config
from milvus_pipeline.config.build import check_stages
from milvus_pipeline.config.collection import CollectionSpec
from milvus_pipeline.config.sweep import as_data
from milvus_pipeline.context import Deadline, is_number, resolve_timeout, time_limit
from milvus_pipeline.driver import adrive, drive
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.findings import Finding
from milvus_pipeline.problems import problems_of
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.doctor import CHECK_SECONDS, examine
from milvus_pipeline.run.dry_run import DryRun
from milvus_pipeline.run.lifecycle import (
    PlacedStage,
    aclose_stages,
    close_stages,
    log_stage_error,
    open_stages,
    place_stages,
)
from milvus_pipeline.run.loop import StageCall, initial_results, process, run_stages, unwrap
from milvus_pipeline.run.stream import Batches, ResultStream, stream
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import short_repr

AnyQuery = str | Query


class Pipeline:
    """Stages in the order they run.

    The pipeline opens itself at its first run. Use it as a context manager, or call ``close``, to release models and
    connections. Any number of threads, and of tasks of event loops, may use it at the same time::

        with Pipeline([Encode(), MilvusSearch(collection="papers"), BGE(top_k=5)]) as pipeline:
            for hit in pipeline.run("what is HNSW?"):
                print(hit.score, hit.text)

    Args:
        stages: at least one; their names differ, and each gets what it needs from those before it.
        name: leads every message, and is the tag of a TREC run.
        timeout: seconds that a call (a query, or a batch run together) may take, unless the call sets its own. It is
            also how long the pipeline waits for the servers of its stages when it opens.
        collection: the collection that ``ingest`` creates for this pipeline.
        sweep: the variants of this pipeline that ``evaluate`` compares; see ``PipelineConfig``.

    Raises:
        ConfigError: an argument is wrong, or the stages do not fit together.
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
                raise ConfigError(f"must be a Stage, got {type(stage).__name__}", place=f"stages[{position}]")
        if not stages:
            raise ConfigError("a pipeline needs at least one stage", place="stages")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"must be a string that is not empty, got {short_repr(name)}", place="name")
        if timeout is not None and (not is_number(timeout) or timeout <= 0):
            raise ConfigError(f"must be a number of seconds above 0, got {short_repr(timeout)}", place="timeout")
        if problems := check_stages(stages):
            raise ConfigError(problems=problems)
        self.stages = tuple(stages)
        self.name = name
        self.timeout = timeout
        self.collection = _collection(collection)
        self.sweep = {path: list(values) for path, values in sweep.items()} if sweep else None
        self._placed = place_stages(name, self.stages)
        self._all = [member for placed in self._placed for member in placed.family()]
        self._lock = threading.RLock()
        self._open = False

    # -- configuration ------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: _config.PipelineConfig | Mapping[str, Any]) -> Self:
        """Make the pipeline that a configuration, or plain data of its shape, describes."""
        if not isinstance(config, _config.PipelineConfig):
            config = _config.from_mapping(config)
        return cls(
            config.stages, name=config.name, timeout=config.timeout, collection=config.collection, sweep=config.sweep
        )

    @classmethod
    def from_yaml(cls, source: str | Path) -> Self:
        """Make the pipeline that a YAML file describes.

        Args:
            source: the file's path; a string with a line break in it is the YAML text itself.

        Raises:
            ConfigError: with every problem of the file, each with its place and line.
        """
        if isinstance(source, str) and "\n" in source:
            return cls.from_config(_config.parse_config(source))
        return cls.from_config(_config.read_config(source))

    def to_config(self) -> dict[str, Any]:
        """Return the configuration as plain data, without defaults."""
        data = {
            "name": self.name,
            "timeout": self.timeout,
            "stages": [stage.config() for stage in self.stages],
            "collection": self.collection and self.collection.config(),
            "sweep": self.sweep and as_data(self.sweep),
        }
        return {key: value for key, value in data.items() if value is not None}

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the configuration as YAML, which ``from_yaml`` reads; also write it to ``path`` if given."""
        text = _config.to_yaml(self.to_config())
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self._parts() == other._parts()

    def _parts(self) -> tuple[object, ...]:
        return (self.stages, self.name, self.timeout, self.collection, self.sweep)

    __hash__ = None  # type: ignore[assignment]  # equality is by value, and a pipeline is no dictionary key

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}: {' -> '.join(stage.name for stage in self.stages)})"

    def stage(self, name: str) -> Stage:
        """Return the stage or fallback of this name. KeyError if there is none."""
        for stage, *_ in self._all:
            if stage.name == name:
                return stage
        raise KeyError(f"{self.name} has no stage {name!r}; it has {[member.stage.name for member in self._all]}")

    # -- opening and closing ------------------------------------------------------------------------------------

    def open(self, timeout: float | None = None) -> Self:
        """Open every stage: load models, connect. Does nothing if the pipeline is open.

        Args:
            timeout: seconds that the server of a stage has to answer; the pipeline's own by default. It does not limit
                the loading of models.

        Raises:
            StageError: a stage cannot be opened; those opened before it are closed again.
        """
        with self._lock:
            if not self._open:
                open_stages(self._all, self.timeout if timeout is None else timeout)
                self._open = True
        return self

    def close(self) -> None:
        """Close every stage, once the running calls are done. Does nothing if the pipeline is closed.

        Raises:
            StageError: a stage could not be closed; the others are.
        """
        close_stages(self._take_open())

    async def aopen(self, timeout: float | None = None) -> Self:
        """``open`` without blocking the event loop."""
        return self if self._open else await asyncio.to_thread(self.open, timeout)

    async def aclose(self) -> None:
        """``close`` without blocking the event loop."""
        await aclose_stages(self._take_open())

    def _take_open(self) -> Sequence[PlacedStage]:
        """The stages to close, for the first caller alone."""
        with self._lock:
            stages, self._open = (self._all if self._open else ()), False
        return stages

    def _enter(self, timeout: float | None) -> None:
        """Open the pipeline, and keep its stages open for one run even if the pipeline is closed meanwhile."""
        with self._lock:
            self.open(timeout)
            for stage, *_ in self._all:
                stage.open()

    @contextmanager
    def _running(self, timeout: float | None) -> Iterator[None]:
        self._enter(timeout)
        try:
            yield
        finally:
            with log_stage_error():
                close_stages(self._all)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, query: AnyQuery, *, timeout: float | None = None) -> SearchResult:
        """Answer one query.

        Args:
            query: its text, or a Query.
            timeout: seconds it may take; the pipeline's own by default.

        Raises:
            QueryError: the query itself is wrong.
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
            One result for each query, in their order.

        Raises:
            PipelineError: the first failed query's error, unless ``return_errors``.
        """
        seconds = resolve_timeout(timeout, self.timeout)
        with self._running(seconds):
            results = drive(run_stages(self._placed, initial_results(queries), Deadline.after(seconds)), process)
        return unwrap(results, return_errors=return_errors)

    def run_batches(
        self, batches: Iterable[Sequence[AnyQuery]], *, timeout: float | None = None, return_errors: bool = False
    ) -> Generator[list[SearchResult], None, None]:
        """Answer any number of batches in constant memory, with the stages working on different ones.

        While one batch is reranked, the next is retrieved: each stage that takes time has a thread. The results are
        those of ``run_batch``: no batch is split or joined with another, and a stage takes one at a time::

            batches = (queries[start : start + 32] for start in range(0, len(queries), 32))
            with contextlib.closing(pipeline.run_batches(batches, return_errors=True)) as answers:
                for results in answers:
                    for result in results:
                        print(result.query.text, result.status, result.texts[:1])

        Batches are read in the caller's thread, a little ahead of the results: one for each stage, and one more. So a
        source whose next batch depends on the last results needs ``run_batch``.

        If the caller stops early (``close``, an exception, Ctrl-C), running calls are cancelled and waited for; after
        Ctrl-C for two seconds at most.

        Args:
            batches: lists of texts or Query objects.
            timeout: seconds that each batch may take, without its waits for the batches before it; the pipeline's own
                by default.
            return_errors: give a failed query a result with status "failed" and its ``error``, instead of raising.

        Yields:
            For each batch, in their order, one result for each query, in theirs.

        Raises:
            PipelineError: the first failed query's error, unless ``return_errors``, after the batches before its own.
            Exception: that of ``batches``, after the batches that were read before it.
        """
        return self._stream(iter(batches), resolve_timeout(timeout, self.timeout), return_errors)

    def _stream(self, batches: Batches, seconds: float | None, return_errors: bool) -> ResultStream:
        with self._running(seconds):
            yield from stream(self._placed, batches, seconds, return_errors=return_errors)

    async def arun(self, query: AnyQuery, *, timeout: float | None = None) -> SearchResult:
        """``run`` for an event loop. Cancelling it ends its waits at once."""
        return (await self.arun_batch([query], timeout=timeout))[0]

    async def arun_batch(
        self, queries: Sequence[AnyQuery], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[SearchResult]:
        """``run_batch`` for an event loop."""
        seconds = resolve_timeout(timeout, self.timeout)
        await self.aopen(seconds)
        self._enter(seconds)  # nothing is left to open: counting users takes no time, and cannot be cancelled half way
        try:
            loop = run_stages(self._placed, initial_results(queries), Deadline.after(seconds))
            results = await adrive(loop, _aprocess)
        finally:
            with log_stage_error():
                await aclose_stages(self._all)
        return unwrap(results, return_errors=return_errors)

    def run_stages(
        self, results: Sequence[SearchResult], start: int, stop: int, *, timeout: float | None = None
    ) -> list[SearchResult]:
        """Take results through some of the stages: ``stages[start:stop]``. Useful for inspecting intermediate results.

        Taking results from stage to stage gives what ``run_batch`` gives, except that each call of this method has its
        own deadline. The first stages start from ``SearchResult(query)``.

        Args:
            results: after the stages before ``start``; failed ones are returned as they are.
            start: index of the first stage.
            stop: index behind the last stage.
            timeout: seconds these stages may take; the pipeline's own by default.

        Returns:
            One result for each, in their order; those that failed have status "failed" and their ``error``.
        """
        seconds = resolve_timeout(timeout, self.timeout)
        with self._running(seconds):
            return drive(run_stages(self._placed[start:stop], list(results), Deadline.after(seconds)), process)

    # -- checking -----------------------------------------------------------------------------------------------

    def check(self, *, timeout: float = CHECK_SECONDS, send: bool = False) -> list[Finding]:
        """Verify what can be verified before a first query, cheaply and without side effects; the CLI's ``doctor``.

        Servers, collections, keys and models are checked, stage by stage; nothing is loaded, changed or paid for. The
        pipeline need not be open.

        Args:
            timeout: seconds that the servers of each stage have to answer.
            send: also send one request of one short text to each hosted service, which may cost something.

        Returns:
            The findings in the order of the stages, each followed by its fallback. Errors are findings, too.
        """
        stepwise = examine(self.stages, self.timeout, resolve_timeout(timeout, CHECK_SECONDS), send=send)
        return [finding for found in stepwise for finding in found]

    async def acheck(self, *, timeout: float = CHECK_SECONDS, send: bool = False) -> list[Finding]:
        """``check`` without blocking the event loop; cancelling it ends it after the current stage."""
        stepwise = examine(self.stages, self.timeout, resolve_timeout(timeout, CHECK_SECONDS), send=send)
        findings: list[Finding] = []
        while (found := await asyncio.to_thread(next, stepwise, None)) is not None:
            findings += found
        return findings

    def dry_run(self, *, timeout: float | None = None) -> DryRun:
        """Prepare to find what a job would send to hosted rerankers, without sending it; see ``DryRun``.

        Args:
            timeout: seconds that servers have to answer when stages open, and that a batch may take; the pipeline's
                own by default.
        """
        return DryRun(self.name, self.stages, timeout=resolve_timeout(timeout, self.timeout))


async def _aprocess(call: StageCall) -> Sequence[SearchResult]:
    """Do a step of the loop in an event loop, which abandons it at its deadline."""
    try:
        async with time_limit(call.context.deadline):
            return await call.stage.aprocess(call.results, call.context)
    except BaseException:
        call.context.cancel()  # a thread that works for the stage must not go on after that
        raise


def _collection(spec: CollectionSpec | Mapping[str, Any] | None) -> CollectionSpec | None:
    if spec is None or isinstance(spec, CollectionSpec):
        return spec
    try:
        return CollectionSpec.model_validate(spec)
    except ValidationError as error:
        raise ConfigError(problems=problems_of(error, CollectionSpec), place="collection") from error
