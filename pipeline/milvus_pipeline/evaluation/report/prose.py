"""The sentences of the report: what each stage improves and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        answers.append(_change_answer(stage, before, evaluation.measures, system, index))
    return answers


def _change_answer(
    stage: StageFigures, before: StageFigures, measures: Sequence[str], system: SystemFigures, index: ComparisonIndex
) -> Answer:
    clauses: list[str] = []
    kind = ""
    for measure in measures:
        if measure not in stage.measures or measure not in before.measures:
            continue
        change = index.of_stage(system.name, stage.stage, measure)
        difference = stage.measures[measure] - before.measures[measure]
        unchanged = difference_text(difference) == "±0"
        if unchanged and measure != measures[0]:
            continue  # only the first measure is worth a clause if it did not change
        clauses.append(_change_clause(measure, stage.measures[measure], difference, change))
        if not kind and not unchanged:
            significant = change is not None and change.significant
            kind = "unsure" if not significant else "better" if difference > 0 else "worse"
    changes = f"{'; '.join(clauses)}." if clauses else ""
    return Answer(stage.stage, f"{changes} {_cost_sentence(stage, system)}".strip(), kind)


def _change_clause(measure: str, value: float, difference: float, change: Comparison | None) -> str:
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
