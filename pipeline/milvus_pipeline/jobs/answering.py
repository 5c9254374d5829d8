"""Batches of queries answered by a pipeline, bad lines among them handed through in their places."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence

from milvus_pipeline.jobs.reading import Item
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult


def answered(
    pipeline: Pipeline, batches: Iterable[Sequence[Item]], timeout: float | None
) -> Generator[list[SearchResult], None, None]:
    """The results of one batch after another, in constant memory, the stages at work on different ones.

    Args:
        pipeline: what answers; see ``Pipeline.run_batches``.
        batches: queries, and results that are there already, such as those of bad lines; read a little ahead.
        timeout: seconds that each batch may take; the pipeline's own by default.

    Yields:
        For each batch one result an item, in their order; failed queries have theirs, too.
    """
    under_way: deque[Sequence[Item]] = deque()

    def asked() -> Iterator[list[Query]]:
        for batch in batches:
            under_way.append(batch)
            yield [item for item in batch if isinstance(item, Query)]

    stream = pipeline.run_batches(asked(), timeout=timeout, return_errors=True)
    try:
        for found in stream:
            answers = iter(found)
            yield [next(answers) if isinstance(item, Query) else item for item in under_way.popleft()]
    finally:
        stream.close()
