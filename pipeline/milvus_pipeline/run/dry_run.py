"""A dry run: what a job would send to hosted rerankers, without sending it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from milvus_pipeline.context import Deadline
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.reranker import Reranker
from milvus_pipeline.run.lifecycle import Life, unclosed_told
from milvus_pipeline.run.loop import allowed, driven, settled, started, steps
from milvus_pipeline.stage import Stage


class DryRun:
    """The stages of a pipeline, up to the last that sends to a service, with nothing sent.

    Retrieval runs truly: what it finds is what would be sent. No reranker is opened, so no key is needed and no model
    is loaded, and no score is invented: of two rerankers the second is shown the hits as they were first found, cut
    to the first one's ``top_k``. Numbers of requests and documents are exact but for that, and for retries. Tokens
    are estimates, as every service counts with a tokenizer of its own.

    As a context manager it holds its stages open from batch to batch; without one each batch opens and closes them::

        with pipeline.dry_run() as dry:
            print(total_planned(result for batch in batches for result in dry.run_batch(batch)))

    Attributes:
        stages: those that run, the pipeline's first.
        services: those of them that would send.

    Args:
        name: the pipeline's.
        stages: all of the pipeline's.
        timeout: seconds that servers have to answer when stages open, and that a batch may take.
    """

    def __init__(self, name: str, stages: Sequence[Stage], *, timeout: float | None = None) -> None:
        last = max((place for place, stage in enumerate(stages) if _sends(stage)), default=-1)
        self.name = name
        self.stages = tuple(stages[: last + 1])
        self.services = tuple(stage for stage in self.stages if _sends(stage))
        self._to_open = tuple(member for stage in self.stages for member in stage.family() if member.dry_run_opens)
        self._timeout = timeout
        self._life = Life(name, stages)

    def __enter__(self) -> Self:
        self._life.open(self._to_open, self._timeout)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._life.close(self._to_open)

    def run_batch(
        self, queries: Sequence[str | Query], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[SearchResult]:
        """What ``Pipeline.run_batch`` would send for these queries; the reports' ``planned`` tells it.

        Args:
            queries: texts or Query objects.
            timeout: seconds the batch may take; that of the dry run by default.
            return_errors: give a failed query a result with its ``error``, instead of raising.

        Returns:
            One result a query, in their order, without the reports of stages that were not run.

        Raises:
            StageError: a stage cannot be opened.
            PipelineError: the first failed query's error, unless ``return_errors``.
        """
        seconds = allowed(timeout, self._timeout)
        self._life.open(self._to_open, seconds)  # counts one more user where they are open
        try:
            loop = steps(self._life.places, self.stages, started(queries), Deadline.after(seconds))
            results = driven(loop, lambda call: call.stage.dry_run(call.results, call.context))
        finally:
            with unclosed_told():
                self._life.close(self._to_open)
        return settled(results, return_errors)


def _sends(stage: Stage) -> bool:
    """True for a reranker that says what it would send."""
    return isinstance(stage, Reranker) and stage.sends
