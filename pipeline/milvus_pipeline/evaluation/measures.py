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
_UNJUDGED = -0.5  # below a judged 0, and above what is judged as spam
_LOWEST_BEST = -1  # a query whose best grade is below it would crash pytrec_eval

Judgements = Mapping[str, Mapping[str, int]]
Rankings = Mapping[str, Sequence[str]]


class Measures:
    """The measures of an evaluation.

    Args:
        names: as ir-measures writes them; duplicates count once.

    Attributes:
        names: in the order given, as they were written.
        failures: by name, why ir-measures could not compute a measure for some rankings.

    Raises:
        ConfigError: there are no names, or ir-measures does not know one or cannot compute it here.
        StageError: ir-measures is not installed.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._library = require("ir_measures", extra="evaluate", wanted_by="evaluate")
        self._named: dict[Any, str] = {}
        self.failures: dict[str, str] = {}
        for name in [names] if isinstance(names, str) else names:
            self._named.setdefault(self._parse(str(name).strip()), str(name).strip())
        if not self._named:
            raise ConfigError("name at least one measure", f"examples: {_EXAMPLES}", place="measures")
        self.names = tuple(self._named.values())

    def _parse(self, name: str) -> Any:
        try:
            measure = self._library.parse_measure(name)
            measure.validate_params()
            self._library.evaluator([measure], {"1": {"1": 1}})
        except (AssertionError, KeyError, NameError, TypeError, ValueError) as error:
            what = str(error).splitlines()
            reason = f" ({' '.join(line.strip() for line in what)})" if what and "object at 0x" not in what[0] else ""
            raise ConfigError(
                f"ir-measures cannot compute {short_repr(name)} here{reason}",
                f"examples: {_EXAMPLES}",
                place="measures",
            ) from error
        return measure

    def check(self, judged: Judgements) -> None:
        """Compute every measure once, for rankings of the judged documents.

        Raises:
            ConfigError: a measure cannot be computed; some need programs that are not installed, numeric ids, or grades
                of at most 4.
        """
        # A document that is not relevant leads, because Accuracy divides by their number.
        rankings = {query: ["unjudged", *grades] for query, grades in judged.items()}
        for measure, name in self._named.items():
            try:
                list(self._library.iter_calc([measure], _grades(judged), _run(rankings)))
            except (OSError, SubprocessError) as error:
                raise ConfigError(
                    f"{name} cannot be computed here: {type(error).__name__} in its program",
                    "measures of gdeval need perl, numeric query ids, and grades of at most 4",
                    place="measures",
                ) from error
            except Exception as error:
                raise ConfigError(f"{name} cannot be computed here: {error_text(error)}", place="measures") from error

    def values(self, judged: Judgements, rankings: Rankings) -> dict[str, dict[str, float]]:
        """Return the value of each measure for each judged query.

        Args:
            judged: grade by document id, by query id.
            rankings: document ids, best first, by query id; a query without one counts as having found nothing.

        Returns:
            By measure and query id. A measure can have no value for a query: Accuracy if nothing relevant was found, or
            any measure if ir-measures fails on it, which ``failures`` records.
        """
        try:
            return self._compute(self._named, judged, rankings)
        except Exception:  # one measure fails on one query (Accuracy divides by zero): compute the others
            found: dict[str, dict[str, float]] = {name: {} for name in self.names}
            for query, grades in judged.items():
                ranking = {query: rankings[query]} if query in rankings else {}
                for measure, name in self._named.items():
                    try:
                        found[name].update(self._compute({measure: name}, {query: grades}, ranking)[name])
                    except Exception as error:
                        self.failures.setdefault(name, error_text(error))
            return found

    def _compute(self, named: Mapping[Any, str], judged: Judgements, rankings: Rankings) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {name: {} for name in named.values()}
        for metric in self._library.iter_calc(list(named), _grades(judged), _run(rankings)):
            found[named[metric.measure]][metric.query_id] = float(metric.value)
        return found

    def aggregators(self) -> dict[str, Any]:
        """Return for each measure an object with ``add(value)`` and ``result()``, over queries."""
        return {name: measure.aggregator() for measure, name in self._named.items()}

    def aggregate(self, name: str, values: Iterable[float]) -> float:
        """Return one value for those of the queries, for nearly all measures their mean; NaN values do not count."""
        total = self.aggregators()[name]
        for value in values:
            if not math.isnan(value):
                total.add(value)
        return float(total.result())


def best_order(documents: Iterable[str], grades: Mapping[str, int]) -> list[str]:
    """Return the documents in the order of a perfect reranker."""
    return sorted(documents, key=lambda document: -grades.get(document, _UNJUDGED))


def _grades(judged: Judgements) -> dict[str, dict[str, int]]:
    """Return the judgements as ir-measures takes them: dicts of dicts.

    If all grades of a query are below -1, pytrec_eval writes past its memory and ends the process. They become -1,
    which is as irrelevant.
    """
    return {
        query: dict(grades) if max(grades.values(), default=0) >= _LOWEST_BEST else dict.fromkeys(grades, _LOWEST_BEST)
        for query, grades in judged.items()
    }


def _run(rankings: Rankings) -> dict[str, dict[str, float]]:
    """Return scores that fall with the rank, so that hits with equal scores keep the order that the reader sees.

    They are above 0, which Compat takes for the score of a document that was not found.
    """
    return {
        query: {document: float(len(documents) - place) for place, document in enumerate(documents)}
        for query, documents in rankings.items()
    }
