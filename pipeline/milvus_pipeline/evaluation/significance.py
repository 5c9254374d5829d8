"""Whether a difference between two rankings is more than chance: paired tests, and corrections for several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from milvus_pipeline.evaluation.figures import Tally
from milvus_pipeline.evaluation.records import Comparison
from milvus_pipeline.evaluation.tree import Node, Tree
from milvus_pipeline.extras import require

TESTS: Final = ("t", "permutation")
CORRECTIONS: Final = ("holm", "bonferroni", "fdr_bh", "none")

_RESAMPLES = 10_000
_AT_ONCE = 1_000_000  # numbers in memory while resampling
_SEED = 0
_NOISE = 1e-12  # differences below it come from the order of a sum


class Difference(NamedTuple):
    """How much two rankings of the same queries differ, and how sure that is.

    Args:
        mean: of the differences of the queries.
        low: lower end of the 95 % confidence interval of the mean.
        high: its upper end.
        p_value: two-sided.
        better: number of queries with a difference above 0.
        worse: below 0.
        same: without one.
    """

    mean: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    same: int


def paired(values: Sequence[float], baseline: Sequence[float], test: str = "t") -> Difference:
    """Compare two rankings in one measure, query by query.

    "t" is Student's paired t-test, with the interval that belongs to it. "permutation" swaps the two values of each
    query, in all ways where there are at most 10,000 and else in as many drawn ones, always the same; its interval is
    the percentile bootstrap's, which, unlike BCa, is defined for few queries and equal differences, too. It takes a
    second for some hundred queries, and grows with their number.

    Where all queries differ by the very same amount there is no variance for a t-test: the p-value is then that of the
    permutation test, worked out (2 to the power of 1 - n for n queries), and the interval is that amount alone. So
    one query has a p-value of 1.

    Args:
        values: a number a query.
        baseline: the same measure of the other ranking, query by query; pairs with NaN in them do not count.
        test: one of ``TESTS``.
    """
    import numpy as np

    differences = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    differences = differences[~np.isnan(differences)]
    differences[np.abs(differences) <= _NOISE] = 0.0
    better, worse = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    counts = (better, worse, len(differences) - better - worse)
    if not better and not worse:
        return Difference(0.0, 0.0, 0.0, 1.0, *counts)
    mean = float(np.mean(differences))
    if np.ptp(differences) <= _NOISE:
        return Difference(mean, mean, mean, 2.0 ** (1 - len(differences)), *counts)
    low, high, p_value = (_t if test == "t" else _permutation)(differences)
    return Difference(mean, low, high, p_value, *counts)


def _t(differences: Any) -> tuple[float, float, float]:
    stats = require("scipy.stats", extra="evaluate", wanted_by="evaluate")
    outcome = stats.ttest_1samp(differences, 0.0)  # of the differences: the paired test
    interval = outcome.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(outcome.pvalue)


def _permutation(differences: Any) -> tuple[float, float, float]:
    stats = require("scipy.stats", extra="evaluate", wanted_by="evaluate")
    given = {"n_resamples": _RESAMPLES, "vectorized": True, "batch": max(1, _AT_ONCE // len(differences))}
    outcome = stats.permutation_test((differences,), _mean, permutation_type="samples", random_state=_SEED, **given)
    found = stats.bootstrap((differences,), _mean, method="percentile", random_state=_SEED, **given)
    interval = found.confidence_interval
    return float(interval.low), float(interval.high), float(outcome.pvalue)


def _mean(differences: Any, axis: int) -> Any:
    import numpy as np

    return np.mean(differences, axis=axis)


def corrected(p_values: Sequence[float], correction: str = "holm") -> list[float]:
    """The p-values of a family of comparisons, corrected for their number.

    Args:
        p_values: of all comparisons of the family.
        correction: one of ``CORRECTIONS``.
    """
    if correction == "none" or len(p_values) < 2:
        return list(p_values)
    multitest = require("statsmodels.stats.multitest", extra="evaluate", wanted_by="evaluate")
    return [float(value) for value in multitest.multipletests(p_values, method=correction)[1]]


Tallies = Mapping[Node, Tally]


def compared(tree: Tree, tallies: Tallies, measures: Sequence[str], test: str, correction: str) -> list[Comparison]:
    """Each stage with the ranking before it, then each system with the first one, in every measure.

    A stage that changed no ranking is not compared. One that several systems share is listed for each of them, and
    counts once in the correction. The corrections are for all comparisons of one measure within their family, which is
    either the stages of all systems or the systems: the two answer different questions.
    """
    by_stage = [
        (name, name, path[place], path[place - 1])
        for name, path in tree.paths.items()
        for place in range(1, len(path))
        if path[place - 1].ranks and tallies[path[place]].changed
    ]
    first, *others = tree.paths
    by_system = [(name, first, tree.paths[name][-1], tree.paths[first][-1]) for name in others]
    return [
        comparison
        for family in (by_stage, by_system)
        for measure in measures
        for comparison in _family(family, tallies, measure, test, correction)
    ]


def _family(
    family: Sequence[tuple[str, str, Node, Node]], tallies: Tallies, measure: str, test: str, correction: str
) -> list[Comparison]:
    """The comparisons of one family in one measure."""
    found: dict[tuple[str, Node, Node], Comparison] = {}
    made: list[tuple[tuple[str, Node, Node], Comparison]] = []
    for system, baseline_system, node, baseline in family:
        # Stages are told apart by their nodes; two systems that share all of them are compared all the same.
        key = ("" if system == baseline_system else system, node, baseline)
        if key not in found:
            difference = paired(tallies[node].values[measure], tallies[baseline].values[measure], test)
            found[key] = Comparison(
                measure=measure,
                system=system,
                stage=node.stage.name,
                baseline_system=baseline_system,
                baseline_stage=baseline.stage.name,
                difference=difference.mean,
                low=difference.low,
                high=difference.high,
                p_value=difference.p_value,
                p_corrected=difference.p_value,
                better=difference.better,
                worse=difference.worse,
                same=difference.same,
            )
        made.append((key, replace(found[key], system=system, baseline_system=baseline_system)))
    p_values = corrected([comparison.p_value for comparison in found.values()], correction)
    at = dict(zip(found, p_values, strict=True))
    return [replace(comparison, p_corrected=at[key]) for key, comparison in made]
