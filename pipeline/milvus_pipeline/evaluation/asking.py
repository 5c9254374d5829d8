"""Which queries an evaluation asks: those that have judgements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from milvus_pipeline.errors import InputError
from milvus_pipeline.evaluation.measures import Judgements
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.running import started


@dataclass(frozen=True, slots=True)
class Asked:
    """The queries to ask.

    Args:
        results: to start from, one a query; one that cannot be run is failed already.
        judged: grade by document id, by query id, in the order of ``results``.
        given: number of all queries that were given.
        warnings: what was left out.
    """

    results: list[SearchResult]
    judged: Judgements
    given: int
    warnings: tuple[str, ...]


def asked_of(queries: Iterable[str | Query | SearchResult], qrels: Mapping[str, Mapping[str, int]]) -> Asked:
    """The queries that have judgements, in their order; the others are not even kept.

    Raises:
        InputError: there are none, or two have the same id.
    """
    results: dict[str, SearchResult] = {}
    others: list[str | None] = []  # the first few ids
    given = 0
    for query in queries:
        given += 1
        result = query if isinstance(query, SearchResult) else started([query])[0]
        name = None if result.query.id is None else str(result.query.id)
        if name is None or not qrels.get(name):
            others = others if len(others) == 3 else [*others, name]
            continue
        if name in results:
            raise InputError(f"the id {name!r} is that of two queries; an id says which judgements are a query's")
        results[name] = result
    if not results:
        raise InputError(_nothing_in_common(given, others, [name for name, grades in qrels.items() if grades]))
    judged = {name: qrels[name] for name in results}
    return Asked(list(results.values()), judged, given, tuple(_warnings(given, judged, qrels)))


def _nothing_in_common(given: int, others: list[str | None], judged: list[str]) -> str:
    if not given:
        return "there are no queries"
    if not judged:
        return "there are no judgements"
    known = [name for name in others if name is not None]
    theirs = f"their ids begin with {', '.join(map(repr, known))}" if known else "they have no ids"
    return (
        f"none of the {given} queries has judgements: {theirs}, and judged are {', '.join(map(repr, judged[:3]))} "
        f"(of {len(judged)}); the ids must be the same"
    )


def _warnings(given: int, judged: Judgements, qrels: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    if left_out := given - len(judged):
        yield f"{left_out} of {given} queries have no judgements, and were left out"
    if not_asked := sum(bool(grades) for grades in qrels.values()) - len(judged):
        yield f"{not_asked} of the judged queries are not among those asked; their judgements were left out"
    if hopeless := sum(all(grade <= 0 for grade in grades.values()) for grades in judged.values()):
        yield f"{hopeless} of {len(judged)} queries have nothing judged relevant; most measures are 0 for them"
    if len(judged) == 1:
        yield "one query tells of no difference between rankings: every p-value is 1, and no interval means anything"
