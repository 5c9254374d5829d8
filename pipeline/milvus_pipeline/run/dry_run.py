"""A dry run: what a job would send to hosted rerankers, without sending it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from milvus_pipeline.context import Deadline, resolve_timeout
from milvus_pipeline.driver import drive
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.reranker import Reranker
from milvus_pipeline.run.lifecycle import close_stages, log_stage_error, open_stages, place_stages
from milvus_pipeline.run.loop import initial_results, run_stages, unwrap
from milvus_pipeline.stage import Stage


class DryRun:
    """The stages of a pipeline, up to the last that sends to a service, with nothing sent.

    Retrieval runs as usual: the texts it finds are those that would be sent. Rerankers stay closed, so no key is
    needed, no model is loaded, and no hit gets a score: the second of two rerankers gets the hits as they were found,
    cut to the first one's ``top_k``. Numbers of requests and documents are exact but for that, and for retries. Tokens
    are estimates, as every service counts with its own tokenizer.

    As a context manager it keeps its stages open from batch to batch; otherwise each batch opens and closes them::

        with pipeline.dry_run() as dry:
            print(total_planned(result for batch in batches for result in dry.run_batch(batch)))

    Attributes:
        stages: those that run: the first of the pipeline's.
        services: those of them that would send.

    Args:
        name: the pipeline's.
        stages: all of the pipeline's.
        timeout: seconds that servers have to answer when stages open, and that a batch may take.
    """

    def __init__(self, name: str, stages: Sequence[Stage], *, timeout: float | None = None) -> None:
        last = max((position for position, stage in enumerate(stages) if _sends(stage)), default=-1)
        self.name = name
        self.stages = tuple(stages[: last + 1])
        self.services = tuple(stage for stage in self.stages if _sends(stage))
        self._placed = place_stages(name, self.stages)
        members = (member for placed in self._placed for member in placed.family())
        self._to_open = [member for member in members if member.stage.dry_run_opens]
        self._timeout = timeout

    def __enter__(self) -> Self:
        open_stages(self._to_open, self._timeout)
        return self

    def __exit__(self, *error: object) -> None:
        close_stages(self._to_open)

    def run_batch(
        self, queries: Sequence[str | Query], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[SearchResult]:
        """Find what ``Pipeline.run_batch`` would send for these queries: ``planned`` of the reports.

        Args:
            queries: texts or Query objects.
            timeout: seconds the batch may take; that of the dry run by default.
            return_errors: give a failed query a result with its ``error``, instead of raising.

        Returns:
            One result for each query, in their order, without the reports of stages that did not run.

        Raises:
            StageError: a stage cannot be opened.
            PipelineError: the first failed query's error, unless ``return_errors``.
        """
        seconds = resolve_timeout(timeout, self._timeout)
        open_stages(self._to_open, seconds)  # counts one more user of those that are open
        try:
            loop = run_stages(self._placed, initial_results(queries), Deadline.after(seconds))
            results = drive(loop, lambda call: call.stage.dry_run(call.results, call.context))
        finally:
            with log_stage_error():
                close_stages(self._to_open)
        return unwrap(results, return_errors=return_errors)


def _sends(stage: Stage) -> bool:
    return isinstance(stage, Reranker) and stage.sends
