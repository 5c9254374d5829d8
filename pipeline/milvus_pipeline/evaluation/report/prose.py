"""The sentences of the report: what each stage improves and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from milvus_pipeline.evaluation.records import Comparison, ComparisonIndex, Evaluation, StageFigures, SystemFigures
from milvus_pipeline.text import difference_text, measure_text, money_text, p_value_text, time_text

_TESTS: Final[Mapping[str, str]] = {"t": "paired t-test", "permutation": "paired permutation test"}
_CORRECTIONS: Final[Mapping[str, str]] = {
    "holm": "p-values corrected by Holm's method",
    "bonferroni": "p-values corrected by Bonferroni's method",
    "fdr_bh": "p-values corrected by the method of Benjamini and Hochberg",
    "none": "p-values not corrected for multiple comparisons",
}
_NOTABLE_SHARE: Final = 0.01


class Answer(NamedTuple):
    """A sentence about one stage, and its kind: "better", "worse", "unsure" or ""."""

    stage: str
    text: str
    kind: str


def significance_text(evaluation: Evaluation) -> str:
    """Return the test and the correction: ``paired t-test, p-values corrected by Holm's method``."""
    return f"{_TESTS[evaluation.test]}, {_CORRECTIONS[evaluation.correction]}"


def statuses_text(statuses: Mapping[str, int]) -> str:
    """Return the numbers of queries whose status is not "ok": ``3 degraded, 1 failed``."""
    return ", ".join(f"{number:,} {status}" for status, number in statuses.items() if status != "ok" and number)


def stage_answers(evaluation: Evaluation, system: SystemFigures, index: ComparisonIndex) -> list[Answer]:
    """Return what each ranking stage improves and costs, in the order of the stages."""
    stages = system.ranking_stages
    measure = evaluation.measures[0]
    answers = []
    for stage in stages[:1]:
        text = f"gives {measure} {measure_text(stage.measures[measure])}."
        if (ceiling := stage.ceilings.get(measure)) is not None:
            text += f" A perfect order of its {stage.hits:.0f} hits would give {measure_text(ceiling)}."
        answers.append(Answer(stage.stage, f"{text} {_cost_sentence(stage, system)}", ""))
    for before, stage in pairwise(stages):
        changes = [
            (name, stage.measures[name] - before.measures[name], index.of_stage(system.name, stage.stage, name))
            for name in evaluation.measures
        ]
        moved = [change for change in changes if difference_text(change[1]) != "±0"]
        kind = ""
        for _, difference, comparison in moved[:1]:
            significant = comparison is not None and comparison.significant
            kind = "unsure" if not significant else "better" if difference > 0 else "worse"
        # Only the first measure is worth a clause if it did not change.
        clauses = [_change_clause(stage, *change) for change in changes if change in moved or change[0] == measure]
        answers.append(Answer(stage.stage, f"{'; '.join(clauses)}. {_cost_sentence(stage, system)}", kind))
    return answers


def _change_clause(stage: StageFigures, measure: str, difference: float, change: Comparison | None) -> str:
    value = stage.measures[measure]
    if difference_text(difference) == "±0":
        return f"leaves {measure} as it is"
    if math.isnan(difference):
        return f"{measure} {measure_text(value)}"
    verb = "raises" if difference > 0 else "lowers"
    clause = f"{verb} {measure} by {abs(difference):.3f} to {measure_text(value)}"
    if change is None:
        return clause
    doubt = "" if change.significant else ", which may be chance"
    return f"{clause}{doubt} ({p_value_text(change.p_corrected)})"


def _cost_sentence(stage: StageFigures, system: SystemFigures) -> str:
    text = f"Takes {time_text(stage.latency.p50)}"
    whole = system.latency.mean
    share = stage.latency.mean / whole if whole > 0 else 0
    if share >= _NOTABLE_SHARE:
        text += f", {100 * share:.0f} % of the time"
    if stage.cost is not None and stage.cost > 0:
        text += f"; costs {money_text(stage.cost)} in total"
    return f"{text}."
