"""How many of the nearest rows a search finds: the search as configured, compared with one at full effort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from milvus_pipeline import DeadlineError
from milvus_pipeline.plugin import Deadline, Finding
from milvus_stages.milvus.client.server import Connection
from milvus_stages.milvus.collection import CollectionState
from milvus_stages.milvus.requests import Request

QUERIES: Final = 50
"""Stored vectors that are searched for."""

GOOD: Final = 0.9
"""A lower recall is reported as a warning."""

_ENOUGH: Final = 0.95  # no higher effort is tried beyond it
_TRIES: Final = 6
_MOST_HITS: Final = 1000  # per query that are compared
_TOLERANCE: Final = 1e-5  # of the greatest score; closer scores differ only by rounding

_EFFORTS: Final = {"IVF": "nprobe", "SCANN": "nprobe", "HNSW": "ef", "DISKANN": "search_list"}
"""The parameter that trades time for recall, by the beginning of the index type."""

_DEFAULT_EFFORTS: Final = {"nprobe": 1, "ef": 64, "search_list": 100}
_HIGH_EFFORT: Final = 4096  # of ef and search_list

Vectors = npt.NDArray[np.float32]
Scores = Sequence[Sequence[float]]
"""The scores of the hits of each query, best first."""


def recall_finding(
    state: CollectionState, connection: Connection, deadline: Deadline, vectors: Vectors, expression: str
) -> Finding:
    """Return the recall of the search as it is configured and, if it is poor, the recall with more effort.

    Args:
        state: of the collection, which must be loaded.
        connection: to its server.
        deadline: of the searches.
        vectors: ``(queries, dim)``, some that the collection holds.
        expression: the filter; empty for none.
    """
    kind = state.index.index_type
    if kind in ("FLAT", "BRUTE_FORCE"):
        return Finding.ok("recall", f"a {kind} index compares the query with every vector, so nothing is missed")
    effort = next((name for start, name in _EFFORTS.items() if kind.startswith(start)), None)
    if effort is None:
        return Finding.ok("recall", f"not measured: the search effort of a {kind} index is not known")
    search = _Search(state, connection, deadline, vectors, expression, effort)
    try:
        return _measure(search)
    except (TimeoutError, DeadlineError):
        return Finding.warning("recall", "timed out before it was measured", "give the check more time (`--timeout`)")


class _Search(NamedTuple):
    """A search for the vectors, with a configurable effort; ``effort`` is the name of its parameter."""

    state: CollectionState
    connection: Connection
    deadline: Deadline
    vectors: Vectors
    expression: str
    effort: str

    @property
    def limit(self) -> int:
        """Hits that are compared, per query."""
        return min(self.state.settings.limit, _MOST_HITS)

    @property
    def params(self) -> dict[str, Any]:
        """The configured parameters, without a range, which leaves too little to compare."""
        params = self.state.search_params({})
        return {name: value for name, value in params.items() if name not in ("radius", "range_filter")}

    def scores(self, **effort: int) -> Scores:
        """Search with the configured parameters, overridden by ``effort``."""
        params = {**self.params, **effort}
        arguments = Request(range(len(self.vectors)), list(self.vectors), self.expression, params).arguments(self.state)
        arguments.pop("group_by_field", None)
        arguments["limit"], arguments["output_fields"] = self.limit, [self.state.info.primary]
        arguments["search_params"].pop("offset", None)
        sign = -1.0 if self.state.settings.metric_type == "L2" else 1.0
        answers = self.connection.search(arguments, self.deadline)
        return [[sign * float(hit.distance) for hit in hits] for hits in answers]


def _measure(search: _Search) -> Finding:
    index, effort, limit = search.state.index, search.effort, search.state.settings.limit
    value = int(search.params.get(effort, max(_DEFAULT_EFFORTS[effort], limit)))
    highest = index.nlist or 1024 if effort == "nprobe" else max(_HIGH_EFFORT, value, min(8 * limit, 32768))
    truth = search.scores(**{effort: highest})
    recall = _recall(truth, search.scores())
    if recall is None:
        return Finding.ok("recall", "not measured: the search finds nothing to compare")
    exact = index.index_type == "IVF_FLAT" and index.nlist is not None
    source = "a search of every list" if exact else f"the same index with {effort} {highest} (an upper bound)"
    text = (
        f"recall@{search.limit} is {recall:.2f}, against {source}, for {len(search.vectors)} of the collection's "
        "own vectors (real queries are somewhat harder)"
    )
    if recall >= GOOD:
        return Finding.ok("recall", text)
    tried: list[tuple[int, float]] = []
    while len(tried) < _TRIES and value < highest and (not tried or tried[-1][1] < _ENOUGH):
        value = min(2 * value, highest)
        tried.append((value, _recall(truth, search.scores(**{effort: value})) or 0.0))
    gains = ", ".join(f"{value} gives {found:.2f}" for value, found in tried)
    return Finding.warning("recall", text, f"raise params.{effort}: {gains}")


def _recall(truth: Scores, found: Scores) -> float | None:
    """The mean share of the best scores that were found; None if no query has any."""
    shares = []
    for best, scores in zip(truth, found, strict=True):
        if best:
            # Hits that tie with the last of the best count as found.
            least = best[-1] - _TOLERANCE * max(map(abs, best))
            shares.append(min(1.0, sum(score >= least for score in scores) / len(best)))
    return sum(shares) / len(shares) if shares else None
