"""Measures by their ir-measures names, computed by ir-measures itself, a few rankings at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from subprocess import SubprocessError
from typing import Any

from milvus_pipeline.errors import ConfigError
from milvus_pipeline.extras import require
from milvus_pipeline.text import error_text, short_repr

_EXAMPLES = "nDCG@10, AP@100, RR, P@5, R@100, R(rel=2)@50, Judged@10, nDCG(dcg='exp-log2')@10"
_UNJUDGED = -0.5  # below a judged 0, which cannot be worse, and above what is judged as spam
_LEAST_BEST = -1  # the best grade that a query may have at least

Judgements = Mapping[str, Mapping[str, int]]
Rankings = Mapping[str, Sequence[str]]


class Measures:
    """The measures of an evaluation.

    Args:
        names: as ir-measures writes them; what is named twice counts once.

    Attributes:
        names: in the order given, as they were written.
        lacking: why a measure has no value for some rankings, where ir-measures failed on them; by name.

    Raises:
        ConfigError: there is none, or ir-measures does not know one, or knows it and cannot compute it here.
        StageError: ir-measures is not installed.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._library = require("ir_measures", extra="evaluate", wanted_by="evaluate")
        self._named: dict[Any, str] = {}
        self.lacking: dict[str, str] = {}
        for name in [names] if isinstance(names, str) else names:
            self._named.setdefault(self._parsed(str(name).strip()), str(name).strip())
        if not self._named:
            raise ConfigError(f"measures: name at least one, such as {_EXAMPLES}")
        self.names = tuple(self._named.values())

    def _parsed(self, name: str) -> Any:
        try:
            measure = self._library.parse_measure(name)
            measure.validate_params()
            self._library.evaluator([measure], {"1": {"1": 1}})
        except (AssertionError, KeyError, NameError, TypeError, ValueError) as error:
            what = str(error).splitlines()
            reason = f" ({' '.join(line.strip() for line in what)})" if what and "object at 0x" not in what[0] else ""
            raise ConfigError(
                f"measures: {short_repr(name)} is none that ir-measures can compute here{reason}",
                f"examples: {_EXAMPLES}",
            ) from error
        return measure

    def tried(self, judged: Judgements) -> None:
        """Compute every measure once, of rankings that hold the judged documents.

        Raises:
            ConfigError: one cannot be computed; some need programs that are not there, ids that are numbers, or grades
                that are not above 4.
        """
        # What is not relevant leads: Accuracy divides by its number.
        rankings = {query: ["unjudged", *grades] for query, grades in judged.items()}
        for measure, name in self._named.items():
            try:
                list(self._library.iter_calc([measure], _plain(judged), _run(rankings)))
            except (OSError, SubprocessError) as error:
                reason = (
                    f"{type(error).__name__} in its program; those of gdeval want perl, query ids that are numbers, "
                    "and grades of at most 4"
                )
                raise ConfigError(f"measures: {name} cannot be computed here: {reason}") from error
            except Exception as error:
                raise ConfigError(f"measures: {name} cannot be computed here: {error_text(error)}") from error

    def values(self, judged: Judgements, rankings: Rankings) -> dict[str, dict[str, float]]:
        """The value of each measure for each judged query.

        Args:
            judged: grade by document id, by query id.
            rankings: document ids, best first, by query id; a query without one counts as having found nothing.

        Returns:
            By measure and query id. A measure may have no value for a query: Accuracy, where nothing relevant ranks, or
            where ir-measures fails on it, which ``lacking`` tells.
        """
        try:
            return self._found(self._named, judged, rankings)
        except Exception:  # one measure fails on one query (Accuracy divides by zero); the others are worth having
            found: dict[str, dict[str, float]] = {name: {} for name in self.names}
            for query, grades in judged.items():
                ranking = {query: rankings[query]} if query in rankings else {}
                for measure, name in self._named.items():
                    try:
                        found[name].update(self._found({measure: name}, {query: grades}, ranking)[name])
                    except Exception as error:
                        self.lacking.setdefault(name, error_text(error))
            return found

    def _found(self, named: Mapping[Any, str], judged: Judgements, rankings: Rankings) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {name: {} for name in named.values()}
        for metric in self._library.iter_calc(list(named), _plain(judged), _run(rankings)):
            found[named[metric.measure]][metric.query_id] = float(metric.value)
        return found

    def sums(self) -> dict[str, Any]:
        """For each measure what makes one value of those of the queries: ``add`` them, then ask for the ``result``."""
        return {name: measure.aggregator() for measure, name in self._named.items()}

    def over_queries(self, name: str, values: Iterable[float]) -> float:
        """One value of those of the queries, which is their mean for nearly all measures; NaN values do not count."""
        total = self.sums()[name]
        for value in values:
            if not math.isnan(value):
                total.add(value)
        return float(total.result())


def best_first(documents: Iterable[str], grades: Mapping[str, int]) -> list[str]:
    """The documents in the order that a perfect reranker would give them."""
    return sorted(documents, key=lambda document: -grades.get(document, _UNJUDGED))


def _plain(judged: Judgements) -> dict[str, dict[str, int]]:
    """As ir-measures knows it by its type.

    A query whose grades are all below -1 ends the process: pytrec_eval writes past its memory. They are -1 here, which
    is as irrelevant.
    """
    return {
        query: dict(grades) if max(grades.values(), default=0) >= _LEAST_BEST else dict.fromkeys(grades, _LEAST_BEST)
        for query, grades in judged.items()
    }


def _run(rankings: Rankings) -> dict[str, dict[str, float]]:
    """Scores that fall with the rank, so that ties in a stage's scores stay in the order that the reader would see.

    They are above 0, which is what Compat takes for the score of a document that was not found.
    """
    return {
        query: {document: float(len(documents) - place) for place, document in enumerate(documents)}
        for query, documents in rankings.items()
    }
