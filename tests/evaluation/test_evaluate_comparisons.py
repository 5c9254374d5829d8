"""Which rankings are compared, how their p-values are corrected, and which queries are kept for a picture."""

import pytest

from milvus_pipeline import Pipeline, Query, evaluate
from support.fake_stages.basic import FirstOnly
from support.fake_stages.evaluation import TableRerank, TableSearch

pytest.importorskip("ir_measures")
stats = pytest.importorskip("scipy.stats")
multitest = pytest.importorskip("statsmodels.stats.multitest")

DOCUMENTS = [f"d{place}" for place in range(10)]
TABLE = {f"text {number}": DOCUMENTS for number in range(10)}
QUERIES = [Query(f"text {number}", id=str(number)) for number in range(10)]
QRELS = {str(number): {f"d{number}": 1} for number in range(10)}
SEARCH = [1 / (number + 1) for number in range(10)]  # RR
BACKWARDS = [1 / (10 - number) for number in range(10)]
ROTATED = [1 / ((number + 3) % 10 + 1) for number in range(10)]


def backwards(**fields):
    return TableRerank(name="backwards", first=tuple(reversed(DOCUMENTS)), **fields)


def rotated(**fields):
    return TableRerank(name="rotated", first=tuple(DOCUMENTS[7:] + DOCUMENTS[:7]), **fields)


def evaluated(*systems, **options):
    pipelines = {
        name: Pipeline([TableSearch(table=TABLE), *stages], name=name)
        for name, stages in zip("abc", systems, strict=False)
    }
    return evaluate(pipelines, QUERIES, **{"qrels": QRELS, "measures": ["RR"], **options})


def pairs(found):
    return [(one.measure, one.system, one.stage, one.baseline_system, one.baseline_stage) for one in found.comparisons]


def test_stages_are_compared_with_the_one_before_and_systems_with_the_first():
    """In every measure; a stage that changes no ranking is not compared."""
    found = evaluated([], [backwards(), TableRerank(name="idle"), FirstOnly()], [rotated()], measures=["RR", "P@1"])
    stages = [
        ("b", "backwards", "b", "table_search"),
        ("b", "first_only", "b", "idle"),
        ("c", "rotated", "c", "table_search"),
    ]
    systems = [("b", "first_only", "a", "table_search"), ("c", "rotated", "a", "table_search")]
    assert pairs(found) == [
        (measure, *pair) for family in (stages, systems) for measure in ("RR", "P@1") for pair in family
    ]


def test_p_values_are_scipys_corrected_within_their_family():
    """Two stages are one family; the two systems that they make differ from the first one are another."""
    found = evaluated([], [rotated()], [rotated(), backwards()], correction="holm")
    stage_values = [stats.ttest_rel(ROTATED, SEARCH).pvalue, stats.ttest_rel(BACKWARDS, ROTATED).pvalue]
    system_values = [stats.ttest_rel(ROTATED, SEARCH).pvalue, stats.ttest_rel(BACKWARDS, SEARCH).pvalue]
    by_pair = {pair[1:]: comparison for pair, comparison in zip(pairs(found), found.comparisons, strict=True)}
    expected = {
        ("b", "rotated", "b", "table_search"): (stage_values, 0),
        ("c", "rotated", "c", "table_search"): (stage_values, 0),  # shared with b: one comparison, shown twice
        ("c", "backwards", "c", "rotated"): (stage_values, 1),
        ("b", "rotated", "a", "table_search"): (system_values, 0),
        ("c", "backwards", "a", "table_search"): (system_values, 1),
    }
    assert by_pair.keys() == expected.keys()
    for pair, (family, place) in expected.items():
        assert by_pair[pair].p_value == pytest.approx(family[place])
        assert by_pair[pair].p_corrected == pytest.approx(multitest.multipletests(family, method="holm")[1][place])
        assert by_pair[pair].significant == (by_pair[pair].p_corrected < 0.05)


def test_the_permutation_test_is_taken_where_asked_for():
    """The evaluation records the test and the correction."""
    found = evaluated([rotated()], test="permutation", correction="none")
    differences = [new - old for new, old in zip(ROTATED, SEARCH, strict=True)]
    expected = stats.permutation_test((differences,), lambda d, axis: d.mean(axis=axis), permutation_type="samples")
    assert found.comparisons[0].p_value == found.comparisons[0].p_corrected == pytest.approx(expected.pvalue)
    assert (found.test, found.correction) == ("permutation", "none")


def test_systems_that_are_the_same_do_not_differ():
    """A system that only has another name has a p-value of 1."""
    (found,) = evaluated([], []).comparisons
    assert (found.system, found.baseline_system, found.difference, found.p_value) == ("b", "a", 0.0, 1.0)


def test_one_query_shows_of_no_difference():
    """Its p-value is 1, and a warning says why."""
    pipeline = Pipeline([TableSearch(table=TABLE), backwards()])
    found = evaluate(pipeline, QUERIES[2:3], QRELS, measures=["RR"])
    assert found.comparisons[0].p_value == 1.0
    assert found.comparisons[0].difference == pytest.approx(1 / 8 - 1 / 3)
    assert any(warning.startswith("one query cannot show a difference") for warning in found.warnings)


def test_the_largest_gains_and_losses_are_kept_for_a_picture():
    """Half gains, half losses, the largest first; with the measures after each stage, and the judgements."""
    found = evaluated([backwards()], movements=4)
    assert [one.query_id for one in found.movements] == ["9", "8", "0", "1"]
    gain = found.movements[0]
    assert (gain.system, gain.query, gain.judged) == ("a", "text 9", {"d9": 1})
    assert [ranking.measures["RR"] for ranking in gain.rankings] == pytest.approx([1 / 10, 1.0])
    assert [ranking.places["d9"] for ranking in gain.rankings] == [10, 1]


def test_where_there_are_few_losses_more_gains_are_kept():
    """Rotating gains for three queries, and loses for seven; what a stage of another kind changes does not count."""
    found = evaluated([rotated(), FirstOnly()], movements=8)
    assert [one.query_id for one in found.movements] == ["7", "8", "9", "0", "1", "2", "3", "4"]
    assert evaluated([FirstOnly()]).movements == ()
    assert evaluated([rotated()], movements=0).movements == ()


def test_movements_are_of_the_first_reranking_system_and_of_the_best():
    """Of many variants of a sweep these two are what one wants to see; retrieval alone has no movement to show."""
    qrels = {query: QRELS[query] for query in "7890"}
    good = TableRerank(name="good", first=("d9", "d8", "d0"))
    found = evaluated([], [rotated()], [good], movements=4, qrels=qrels)
    search, best, second = (system.measures["RR"] for system in found.systems)
    assert search < second < best
    assert [one.system for one in found.movements] == ["b"] * 4
    found = evaluated([], [good], [rotated()], movements=4, qrels=qrels)
    assert [(one.system, one.query_id) for one in found.movements] == [("b", "9"), ("b", "0"), ("c", "7"), ("c", "0")]
