"""Whether a difference between two rankings is more than chance: paired tests, and corrections for several of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

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
