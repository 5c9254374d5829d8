"""How many of the nearest rows a search finds: the index as it is searched, compared with a search of everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from milvus_pipeline import DeadlineError
from milvus_pipeline.plugin import Deadline, Finding
from milvus_stages.doctors.sample import Asked
from milvus_stages.milvus.opening import Opened
from milvus_stages.milvus.requests import MAX_WINDOW, Job

QUERIES: Final = 50
"""Stored vectors that are searched for."""

GOOD: Final = 0.9
"""Less is worth a warning."""

_ENOUGH: Final = 0.95  # no higher effort is tried beyond it
_TRIES: Final = 6
_MOST_HITS: Final = 1000  # of a query that are compared
_MOST_BYTES: Final = 100 * 2**20  # of vectors that are compared one by one
_TOLERANCE: Final = 1e-5  # of the greatest score; closer ones are equal but for rounding

_EFFORTS: Final = {"IVF": "nprobe", "SCANN": "nprobe", "HNSW": "ef", "DISKANN": "search_list"}
"""By the beginning of an index's name, the parameter that trades time for recall."""

_DEFAULT_EFFORTS: Final = {"ef": 64, "search_list": 100}
_HIGHEST: Final = {"ef": 4096, "search_list": 4096}

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Answers = Sequence[Sequence[Any]]


class _Truth(Protocol):
    """What a search of everything finds."""

    against: str

    def shares(self, answers: Answers) -> list[float]:
        """For each query the share of the best hits that an answer holds; 1 where there are none."""


class _Effort(NamedTuple):
    """The parameter that trades time for recall, its value, and the highest that it may have."""

    name: str
    value: int
    highest: int


def recall_findings(
    state: Opened, asked: Asked, vectors: Vectors, rows: int, expression: str, deadline: Deadline
) -> Iterator[Finding]:
    """The recall of the search as it is configured, and of one with more effort where it is poor.

    Args:
        state: the search; its collection is loaded.
        asked: for rows of the collection.
        vectors: ``(queries, dim)``, some that the collection holds.
        rows: how many it holds.
        expression: the filter; empty for none.
        deadline: for all of it.
    """
    kind = state.index.index_type
    if kind in ("FLAT", "BRUTE_FORCE"):
        yield Finding.ok("recall", f"a {kind} index compares the query with every vector, so nothing is missed")
        return
    search = _Search(state, vectors, expression, deadline)
    try:
        truth = _truth(search, asked, rows)
        if truth is None:
            yield Finding.ok("recall", f"not measured: of {rows:,} rows in a {kind} index there is no exact answer")
            return
        now = _mean(truth.shares(search.answers()))
        if now is None:
            yield Finding.ok("recall", "not measured: the search finds nothing to compare")
            return
        text = (
            f"recall@{search.limit} is {now:.2f}, against {truth.against}, for {len(vectors)} of the collection's own "
            "vectors (real queries are somewhat harder)"
        )
        if now >= GOOD:
            yield Finding.ok("recall", text)
        else:
            yield Finding.warning("recall", text, _advice(search, truth, now))
    except (TimeoutError, DeadlineError):
        yield Finding.warning("recall", "not measured in the time given", "give the check more time (`--timeout`)")


class _Search:
    """Searches for the vectors with one effort or another, one after the other."""

    def __init__(self, state: Opened, vectors: Vectors, expression: str, deadline: Deadline) -> None:
        self.state = state
        self.vectors = vectors
        self.expression = expression
        self.limit = min(state.stage.limit, _MOST_HITS)
        self.params = {
            name: value for name, value in state.search_params({}).items() if name not in ("radius", "range_filter")
        }
        self.effort = _effort(state, self.params)
        self._deadline = deadline

    def answers(self, effort: int | None = None) -> Answers:
        """The hits of every vector, best first."""
        params: dict[str, Any] = dict(self.params)
        if effort is not None and self.effort is not None:
            params[self.effort.name] = effort
        job = Job(range(len(self.vectors)), list(self.vectors), self.expression, params)
        arguments = job.arguments(self.state)
        arguments.pop("group_by_field", None)
        arguments["limit"], arguments["output_fields"] = self.limit, [self.state.info.primary]
        arguments["search_params"].pop("offset", None)
        answers: Answers = self.state.connection.search(arguments, self._deadline)
        return answers


def _effort(state: Opened, params: Mapping[str, Any]) -> _Effort | None:
    kind = state.index.index_type
    name = next((own for start, own in _EFFORTS.items() if kind.startswith(start)), None)
    if name is None:
        return None
    if name == "nprobe":
        return _Effort(name, int(params.get(name, 1)), state.index.nlist or 1024)
    value = int(params.get(name, max(_DEFAULT_EFFORTS[name], state.stage.limit)))
    return _Effort(name, value, max(_HIGHEST[name], value, min(8 * state.stage.limit, 32768)))


def _truth(search: _Search, asked: Asked, rows: int) -> _Truth | None:
    """The best answer that can be had; None where none is better than the search's own."""
    state = search.state
    exact = state.index.index_type == "IVF_FLAT" and state.index.nlist is not None
    if not exact and rows <= MAX_WINDOW and rows * state.dim * 4 <= _MOST_BYTES:
        return _Compared(search, asked)
    if search.effort is None:
        return None
    most = search.effort.highest
    against = "a search of every list" if exact else f"{search.effort.name} {most}, the most that was tried"
    return _Searched(search.answers(most), against, rising=state.stage.metric_type == "L2")


class _Searched:
    """The answer of the index itself, with more effort. Ties at its end count as found, whichever row came back."""

    def __init__(self, best: Answers, against: str, *, rising: bool) -> None:
        self.against = against
        self._sign = -1.0 if rising else 1.0
        self._scores = [[self._sign * float(hit.distance) for hit in hits] for hits in best]

    def shares(self, answers: Answers) -> list[float]:
        """See ``_Truth``."""
        found = [[self._sign * float(hit.distance) for hit in hits] for hits in answers]
        return [_share(own, best) for own, best in zip(found, self._scores, strict=True) if best]


class _Compared:
    """Every vector compared here, one page of rows after the other."""

    against = "every row compared"

    def __init__(self, search: _Search, asked: Asked) -> None:
        stage = search.state.stage
        self._kept: dict[Any, int] = {}
        parts = []
        pages = asked.all_vectors(search.state.anns_field, search.expression, stage.partition_names)
        for keys, vectors in pages:
            parts.append(_scores(search.vectors, vectors, stage.metric_type))
            self._kept.update({key: len(self._kept) + place for place, key in enumerate(keys)})
        self._scores = np.concatenate(parts, axis=1) if parts else np.empty((len(search.vectors), 0))
        self._limit = search.limit

    def shares(self, answers: Answers) -> list[float]:
        """See ``_Truth``."""
        shares = []
        for own, hits in zip(self._scores, answers, strict=True):
            best = np.sort(own)[::-1][: self._limit].tolist()
            found = [float(own[self._kept[hit.id]]) for hit in hits if hit.id in self._kept]
            if best:
                shares.append(_share(found, best))
        return shares


def _scores(queries: Vectors, vectors: Vectors, metric: str) -> Scores:
    """Scores ``(queries, rows)`` that rise with relevance."""
    # In single precision the small differences of long vectors, which are what L2 is about, would be lost.
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


def _share(found: Sequence[float], best: Sequence[float]) -> float:
    """The share of the best scores that was found; those at the end count as found where they are equal."""
    least = min(best) - _TOLERANCE * max(map(abs, best))
    return min(1.0, sum(score >= least for score in found) / len(best))


def _mean(shares: Sequence[float]) -> float | None:
    return sum(shares) / len(shares) if shares else None


def _advice(search: _Search, truth: _Truth, now: float) -> str:
    """What more effort would give."""
    effort = search.effort
    if effort is None:
        return f"build the {search.state.index.index_type} index with more effort, or take IVF_FLAT or HNSW"
    tried: list[tuple[int, float]] = []
    value = effort.value
    while len(tried) < _TRIES and value < effort.highest and (not tried or tried[-1][1] < _ENOUGH):
        value = min(2 * value, effort.highest)
        tried.append((value, _mean(truth.shares(search.answers(value))) or 0.0))
    if not tried or tried[-1][1] <= now + 0.01:
        return f"{effort.name} is {effort.value}, and more of it finds no more; build the index anew, with more effort"
    gives = ", ".join(f"{value} gives {recall:.2f}" for value, recall in tried)
    given = effort.name in search.params
    return f"raise params.{effort.name} from {effort.value}: {gives}" if given else f"set params.{effort.name}: {gives}"
