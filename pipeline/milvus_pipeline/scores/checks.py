"""Checks of the texts and scores that are ranked, and their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from milvus_pipeline.context import Context
from milvus_pipeline.errors import QueryError, StageError
from milvus_pipeline.records import Hit, RerankJob
from milvus_pipeline.text import short_repr


def warn_of_missing_texts(hits: Sequence[Hit], position: int, context: Context) -> None:
    """Warn in a query's report of hits that cannot be scored."""
    if missing := sum(hit.text is None for hit in hits):
        context.warn(f"{missing} of {len(hits)} hits have no text; ranked last, without a score", position)


def falling(pair: tuple[object, float | None]) -> tuple[bool, float]:
    """Sort key for (anything, score): the highest score first, unscored last. The sort keeps the order of ties."""
    score = pair[1]
    return (True, 0.0) if score is None else (False, -score)


def checked_scores(scores: Iterable[float | None], count: int) -> list[float | None]:
    """Return the scores as Python floats.

    Raises:
        StageError: not ``count`` of them, or one is not a finite number.
    """
    try:
        values = [None if score is None else float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise StageError(f"a score is not a number ({type(error).__name__})") from error
    if len(values) != count:
        raise StageError(f"expected {count} scores, got {len(values)}")
    for index, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise StageError(f"the score of text {index} is {value}, not a finite number")
    return values


def checked_batch(
    scores: Sequence[Iterable[float | None]], jobs: Sequence[RerankJob], context: Context
) -> dict[int, list[float | None]]:
    """Return the scores of each job by its position, without jobs that have failed.

    Args:
        scores: of each job.
        jobs: that were scored.
        context: of the jobs; a job with wrong scores fails in it.

    Raises:
        StageError: there are not as many lists of scores as jobs.
    """
    if len(scores) != len(jobs):
        raise StageError(f"expected {len(jobs)} lists of scores, got {len(scores)}")
    checked = {}
    for position, (job, given) in enumerate(zip(jobs, scores, strict=True)):
        if position not in context.failures:
            try:
                checked[position] = checked_scores(given, len(job.texts))
            except StageError as error:
                context.fail(position, error)
    return checked


def checked_call(query: str, documents: Iterable[str], top_k: int | None) -> list[str]:
    """Return the documents of a reranker's call. QueryError if an argument is wrong."""
    if not isinstance(query, str):
        raise QueryError(f"the query must be a string, got {type(query).__name__}")
    if not query.strip():
        raise QueryError("the query is empty", "pass the question to rank the documents for")
    if isinstance(documents, str):
        raise QueryError("documents must be a list of strings, got one string", "put it in a list")
    if not isinstance(documents, Iterable):
        raise QueryError(f"documents must be a list of strings, got {type(documents).__name__}")
    documents = list(documents)
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise QueryError(f"documents[{index}] must be a string, got {type(document).__name__}")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise QueryError(f"top_k must be a whole number of at least 1, got {short_repr(top_k)}")
    return documents
