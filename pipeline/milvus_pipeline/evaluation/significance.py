"""Whether a difference between two rankings is more than chance: paired tests, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

from milvus_pipeline.evaluation.figures import Tally
from milvus_pipeline.evaluation.records import Comparison
from milvus_pipeline.evaluation.tree import Node, Tree
from milvus_pipeline.extras import require

Test = Literal["t", "permutation"]
Correction = Literal["holm", "bonferroni", "fdr_bh", "none"]
TESTS: Final[tuple[str, ...]] = get_args(Test)
CORRECTIONS: Final[tuple[str, ...]] = get_args(Correction)

Tallies = Mapping[Node, Tally]
Pair = tuple[str, str, Node, Node]
"""Name of a system, name of its baseline, the node of the one, the node of the other."""

_RESAMPLES = 10_000
_AT_ONCE = 1_000_000  # numbers in memory while resampling
_SEED = 0
_NOISE = 1e-12  # differences below it come from the order of a sum


class Difference(NamedTuple):
    """The difference of two rankings of the same queries; ``Comparison`` has the same fields.

    Args:
        difference: mean of the differences per query.
        low: lower end of the 95 % confidence interval of the mean.
        high: its upper end.
        p_value: two-sided.
        better: number of queries with a difference above 0.
        worse: number of queries with a difference below 0.
        same: number of queries without a difference.
    """

    difference: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    same: int


def compare_paired(values: Sequence[float], baseline: Sequence[float], test: str = "t") -> Difference:
    """Compare two rankings in one measure, query by query.

    "t" is Student's paired t-test with its confidence interval. "permutation" is Fisher's randomization test: it swaps
    the two values of each query, in every way if there are at most 10,000, otherwise in 10,000 random ways with a fixed
    seed; its interval is that of the percentile bootstrap, which, unlike BCa, is defined for few queries and equal
    differences too. It takes about a second for some hundred queries, and grows with their number.

    Both tests are recommended for information retrieval and agree closely there, while the Wilcoxon and sign tests do
    not: Smucker, Allan and Carterette, "A comparison of statistical significance tests for information retrieval
    evaluation", CIKM 2007. Reporting the interval next to the p-value follows Sakai, "Statistical reform in information
    retrieval?", SIGIR Forum 48(1), 2014.

    If all queries differ by the same amount there is no variance for a t-test: the p-value is then that of the
    permutation test in closed form (2 to the power of 1 - n for n queries), and the interval is that amount alone. So
    a single query has a p-value of 1.

    Args:
        values: one number per query.
        baseline: the same measure of the other ranking, query by query; pairs with a NaN do not count.
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
    stats = require("scipy.stats", extra="evaluate", wanted_by="evaluate")
    if test == "t":
        outcome = stats.ttest_1samp(differences, 0.0)  # of the differences: the paired test
        interval = outcome.confidence_interval(0.95)
    else:
        options = {"n_resamples": _RESAMPLES, "vectorized": True, "batch": max(1, _AT_ONCE // len(differences))}
        options |= {"random_state": _SEED}
        outcome = stats.permutation_test((differences,), np.mean, permutation_type="samples", **options)
        interval = stats.bootstrap((differences,), np.mean, method="percentile", **options).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high), float(outcome.pvalue), *counts)


def correct_p_values(p_values: Sequence[float], correction: str = "holm") -> list[float]:
    """Return the p-values of a family of comparisons, corrected for their number.

    "holm" is the step-down method of Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6, 1979: it bounds the chance of any false positive, like Bonferroni's, and finds more.

    Args:
        p_values: of all comparisons of the family.
        correction: one of ``CORRECTIONS``.
    """
    if correction == "none" or len(p_values) < 2:
        return list(p_values)
    multitest = require("statsmodels.stats.multitest", extra="evaluate", wanted_by="evaluate")
    return [float(value) for value in multitest.multipletests(p_values, method=correction)[1]]


def compare_systems(
    tree: Tree, tallies: Tallies, measures: Sequence[str], test: str, correction: str
) -> list[Comparison]:
    """Compare each stage with the ranking before it, then each system with the first one, in every measure.

    A stage that changed no ranking is not compared. One that several systems share is listed for each of them, and
    counts once in the correction. P-values are corrected for all comparisons of one measure within their family, either
    the stages of all systems or the systems, because the two answer different questions.
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
        for comparison in _compare_family(family, tallies, measure, test, correction)
    ]


def _compare_family(
    family: Sequence[Pair], tallies: Tallies, measure: str, test: str, correction: str
) -> list[Comparison]:
    """Compare the pairs of one family in one measure; equal pairs of nodes are tested once."""
    # Two systems that share all stages are still two comparisons; a stage that systems share is one.
    keys = [("" if system == other else system, node, before) for system, other, node, before in family]
    differences = {
        key: compare_paired(tallies[key[1]].values[measure], tallies[key[2]].values[measure], test)
        for key in dict.fromkeys(keys)
    }
    p_values = correct_p_values([found.p_value for found in differences.values()], correction)
    corrected = dict(zip(differences, p_values, strict=True))
    return [
        Comparison(
            measure=measure,
            system=system,
            stage=node.stage.name,
            baseline_system=baseline_system,
            baseline_stage=baseline.stage.name,
            p_corrected=corrected[key],
            **differences[key]._asdict(),
        )
        for key, (system, baseline_system, node, baseline) in zip(keys, family, strict=True)
    ]
