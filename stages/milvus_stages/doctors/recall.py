"""How many of the nearest rows a search finds: the index as it is searched, compared with an exact search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from milvus_pipeline import DeadlineError
from milvus_pipeline.plugin import Finding
from milvus_stages.doctors.sample import RowReader
from milvus_stages.milvus.collection import CollectionState
from milvus_stages.milvus.requests import Request
from milvus_stages.milvus.settings import MAX_WINDOW

QUERIES: Final = 50
"""Stored vectors that are searched for."""

GOOD: Final = 0.9
"""A lower recall is reported as a warning."""

_ENOUGH: Final = 0.95  # no higher effort is tried beyond it
_TRIES: Final = 6
_MOST_HITS: Final = 1000  # per query that are compared
_MOST_BYTES: Final = 100 * 2**20  # of vectors that are compared one by one
_TOLERANCE: Final = 1e-5  # of the greatest score; closer scores differ only by rounding

_EFFORTS: Final = {"IVF": "nprobe", "SCANN": "nprobe", "HNSW": "ef", "DISKANN": "search_list"}
"""The parameter that trades time for recall, by the beginning of the index type."""

_DEFAULT_EFFORTS: Final = {"ef": 64, "search_list": 100}
_HIGHEST: Final = {"ef": 4096, "search_list": 4096}

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Answers = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class _Truth:
    """What an exact search finds.

    Args:
        source: how it was found, for messages.
        best: the scores of the best hits of each query.
        score: of a hit, by the number of its query; None if the hit is unknown.
    """

    source: str
    best: Sequence[Sequence[float]]
    score: Callable[[int, Any], float | None]

    def recall(self, answers: Answers) -> float | None:
        """The mean share of the best hits that the answers hold; None if no query has any."""
        shares = []
        for query, (best, hits) in enumerate(zip(self.best, answers, strict=True)):
            if best:
                # Hits that tie with the last of the best count as found.
                least = min(best) - _TOLERANCE * max(map(abs, best))
                scores = [score for hit in hits if (score := self.score(query, hit)) is not None]
                shares.append(min(1.0, sum(score >= least for score in scores) / len(best)))
        return sum(shares) / len(shares) if shares else None


class _Effort(NamedTuple):
    """The parameter that trades time for recall, its value, and its highest sensible value."""

    name: str
    value: int
    highest: int


def recall_findings(
    state: CollectionState, reader: RowReader, vectors: Vectors, rows: int, expression: str
) -> Iterator[Finding]:
    """Yield the recall of the search as it is configured and, if it is poor, the recall with more effort.

    Args:
        state: of the collection, which must be loaded.
        reader: of its rows.
        vectors: ``(queries, dim)``, some that the collection holds.
        rows: the number of rows in it.
        expression: the filter; empty for none.
    """
    kind = state.index.index_type
    if kind in ("FLAT", "BRUTE_FORCE"):
        yield Finding.ok("recall", f"a {kind} index compares the query with every vector, so nothing is missed")
        return
    search = _Search(state, reader, vectors, expression)
    try:
        truth = _find_truth(search, rows)
        if truth is None:
            yield Finding.ok("recall", f"not measured: there is no exact search of {rows:,} rows in a {kind} index")
            return
        recall = truth.recall(search.answers())
        if recall is None:
            yield Finding.ok("recall", "not measured: the search finds nothing to compare")
            return
        text = (
            f"recall@{search.limit} is {recall:.2f}, against {truth.source}, for {len(vectors)} of the collection's "
            "own vectors (real queries are somewhat harder)"
        )
        if recall >= GOOD:
            yield Finding.ok("recall", text)
        else:
            yield Finding.warning("recall", text, _advice(search, truth, recall))
    except (TimeoutError, DeadlineError):
        yield Finding.warning("recall", "timed out before it was measured", "give the check more time (`--timeout`)")


class _Search:
    """Searches for the vectors with different efforts."""

    def __init__(self, state: CollectionState, reader: RowReader, vectors: Vectors, expression: str) -> None:
        self.state = state
        self.reader = reader
        self.vectors = vectors
        self.expression = expression
        self.limit = min(state.settings.limit, _MOST_HITS)
        params = state.search_params({})
        self.params = {name: value for name, value in params.items() if name not in ("radius", "range_filter")}
        self.effort = _find_effort(state, self.params)

    def answers(self, effort: int | None = None) -> Answers:
        """Return the hits of every vector, best first."""
        params: dict[str, Any] = dict(self.params)
        if effort is not None and self.effort is not None:
            params[self.effort.name] = effort
        request = Request(range(len(self.vectors)), list(self.vectors), self.expression, params)
        arguments = request.arguments(self.state)
        arguments.pop("group_by_field", None)
        arguments["limit"], arguments["output_fields"] = self.limit, [self.state.info.primary]
        arguments["search_params"].pop("offset", None)
        answers: Answers = self.reader.connection.search(arguments, self.reader.deadline)
        return answers


def _find_effort(state: CollectionState, params: Mapping[str, Any]) -> _Effort | None:
    kind, limit = state.index.index_type, state.settings.limit
    name = next((own for start, own in _EFFORTS.items() if kind.startswith(start)), None)
    if name is None:
        return None
    if name == "nprobe":
        return _Effort(name, int(params.get(name, 1)), state.index.nlist or 1024)
    value = int(params.get(name, max(_DEFAULT_EFFORTS[name], limit)))
    return _Effort(name, value, max(_HIGHEST[name], value, min(8 * limit, 32768)))


def _find_truth(search: _Search, rows: int) -> _Truth | None:
    """The best answer available; None if none is better than the search's own."""
    index, effort = search.state.index, search.effort
    exact = index.index_type == "IVF_FLAT" and index.nlist is not None
    if not exact and rows <= MAX_WINDOW and rows * search.state.dim * 4 <= _MOST_BYTES:
        return _compare_all(search)
    if effort is None:
        return None
    source = "a search of every list" if exact else f"{effort.name} {effort.highest}, the highest that was tried"
    sign = -1.0 if search.state.settings.metric_type == "L2" else 1.0

    def score(query: int, hit: Any) -> float:
        return sign * float(hit.distance)

    return _Truth(source, [[score(0, hit) for hit in hits] for hits in search.answers(effort.highest)], score)


def _compare_all(search: _Search) -> _Truth:
    """The truth from comparing every vector here, one page of rows after the other."""
    settings = search.state.settings
    columns: dict[Any, int] = {}
    parts = [np.empty((len(search.vectors), 0))]
    for keys, vectors in search.reader.all_vectors(
        search.state.anns_field, search.expression, settings.partition_names
    ):
        parts.append(_scores(search.vectors, vectors, settings.metric_type))
        columns.update({key: len(columns) + place for place, key in enumerate(keys)})
    scores = np.concatenate(parts, axis=1)
    best = [np.sort(row)[::-1][: search.limit].tolist() for row in scores]
    return _Truth(
        "every row compared", best, lambda query, hit: scores[query, columns[hit.id]] if hit.id in columns else None
    )


def _scores(queries: Vectors, vectors: Vectors, metric: str) -> Scores:
    """Scores ``(queries, rows)`` that rise with relevance."""
    # Single precision would lose the small differences between long vectors, which matter for L2.
    left, right = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "COSINE":
        left, right = _unit(left), _unit(right)
    products: Scores = left @ right.T
    if metric != "L2":
        return products
    squares: Scores = 2 * products - (left**2).sum(axis=1)[:, None] - (right**2).sum(axis=1)[None, :]
    return squares


def _unit(vectors: Scores) -> Scores:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Scores = vectors / np.where(lengths == 0, 1, lengths)
    return unit


def _advice(search: _Search, truth: _Truth, recall: float) -> str:
    """What more effort would give."""
    effort = search.effort
    if effort is None:
        return f"build the {search.state.index.index_type} index with more effort, or use IVF_FLAT or HNSW"
    tried: list[tuple[int, float]] = []
    value = effort.value
    while len(tried) < _TRIES and value < effort.highest and (not tried or tried[-1][1] < _ENOUGH):
        value = min(2 * value, effort.highest)
        tried.append((value, truth.recall(search.answers(value)) or 0.0))
    if not tried or tried[-1][1] <= recall + 0.01:
        return f"{effort.name} is {effort.value}, and more does not help; rebuild the index with more effort"
    gains = ", ".join(f"{value} gives {found:.2f}" for value, found in tried)
    configured = effort.name in search.params
    verb = f"raise params.{effort.name} from {effort.value}" if configured else f"set params.{effort.name}"
    return f"{verb}: {gains}"
