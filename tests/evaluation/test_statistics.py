"""Paired tests, their intervals, and corrections for several comparisons, against scipy, statsmodels and by hand."""

import math
import warnings

import numpy as np
import pytest

from milvus_pipeline.evaluation.significance import TESTS, compare_paired, correct_p_values

stats = pytest.importorskip("scipy.stats")
multitest = pytest.importorskip("statsmodels.stats.multitest")


@pytest.fixture(autouse=True)
def no_warning():
    """A warning that a user would see is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def pairs():
    """The values of two rankings of 40 queries."""
    draw = np.random.default_rng(3)
    baseline = draw.uniform(0.2, 0.8, 40)
    return baseline + draw.normal(0.03, 0.1, 40), baseline


def test_t_is_scipys_paired_t_test(pairs):
    """p-value and interval are those of scipy's ttest_rel, the mean is that of the differences."""
    found = compare_paired(*pairs, "t")
    outcome = stats.ttest_rel(*pairs)
    assert found.p_value == pytest.approx(outcome.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(outcome.confidence_interval(0.95), rel=1e-12)
    assert found.difference == pytest.approx(np.mean(pairs[0] - pairs[1]), rel=1e-12)
    assert found.better + found.worse + found.same == 40


def test_permutation_is_scipys_and_the_same_each_time(pairs):
    """p-value and interval are what scipy gives for swapped pairs and drawn queries, with the same seed."""
    found = compare_paired(*pairs, "permutation")
    differences = pairs[0] - pairs[1]
    outcome = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=10_000, random_state=0
    )
    drawn = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=10_000, random_state=0)
    assert found.p_value == pytest.approx(outcome.pvalue)
    assert (found.low, found.high) == pytest.approx(drawn.confidence_interval)
    assert compare_paired(*pairs, "permutation") == found


def test_few_queries_are_permuted_in_every_way():
    """Of the eight signs that three differences can have, two are as extreme as those seen."""
    found = compare_paired([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], "permutation")
    assert found.p_value == pytest.approx(2 / 8)
    assert found.low <= found.difference <= found.high


@pytest.mark.parametrize("test", TESTS)
def test_no_difference_has_a_p_value_of_one(test):
    """Rankings that are equal for every query differ by nothing, for sure."""
    assert compare_paired([0.5, 0.1, 0.9], [0.5, 0.1, 0.9], test) == (0.0, 0.0, 0.0, 1.0, 0, 0, 3)


def test_what_a_sum_in_another_order_gives_is_no_difference():
    """0.1 + 0.2 and 0.3 are the same measure."""
    assert compare_paired([0.1 + 0.2, 0.5], [0.3, 0.5]).same == 2


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("count", [1, 2, 10])
def test_the_same_difference_everywhere_has_the_p_value_of_its_signs(test, count):
    """Without variance there is no t-test; that all of n signs are the same has a probability of 2 ** (1 - n)."""
    found = compare_paired([0.75] * count, [0.5] * count, test)
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.p_value == pytest.approx(2.0 ** (1 - count))
    assert (found.better, found.worse, found.same) == (count, 0, 0)


def test_queries_without_a_value_do_not_count():
    """A pair of which one is NaN is left out."""
    found = compare_paired([0.5, math.nan, 0.75, 0.5], [0.25, 0.5, 0.5, math.nan])
    assert (found.difference, found.better, found.same) == (pytest.approx(0.25), 2, 0)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ("holm", [0.03, 0.06, 0.06]),
        ("bonferroni", [0.03, 0.12, 0.09]),
        ("fdr_bh", [0.03, 0.04, 0.04]),
        ("none", [0.01, 0.04, 0.03]),
    ],
)
def test_corrections_by_hand(correction, expected):
    """Three p-values, each corrected for the three."""
    assert correct_p_values([0.01, 0.04, 0.03], correction) == pytest.approx(expected)


@pytest.mark.parametrize("p_values", [[], [0.04]])
def test_there_is_nothing_to_correct_without_others(p_values):
    """A family of one comparison, or of none, is as it was."""
    assert correct_p_values(p_values, "holm") == p_values
