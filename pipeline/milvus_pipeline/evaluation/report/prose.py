"""The answer in words: what each stage of a system buys and costs, and which of several systems are worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from milvus_pipeline.evaluation.pareto import best_system, quality_of
from milvus_pipeline.evaluation.records import Comparison, Evaluation, Lookup, StageFigures, SystemFigures

_TESTS: Final[Mapping[str, str]] = {
    "t": "paired t-test",
    "permutation": "paired permutation test",
}
_CORRECTIONS: Final[Mapping[str, str]] = {
    "holm": "Holm",
    "bonferroni": "Bonferroni",
    "fdr_bh": "Benjamini-Hochberg",
}
_LEAST_P: Final = 0.001
_LEAST_MS: Final = 0.1
_COARSE_P: Final = 0.1  # above it the third decimal tells nothing


def test_said(test: str, correction: str) -> str:
    """``paired t-test, p-values corrected after Holm``."""
    said = _TESTS[test]
    if correction == "none":
        return f"{said}, p-values not corrected for multiple comparisons"
    return f"{said}, p-values corrected after {_CORRECTIONS[correction]}"


def value_said(value: float) -> str:
    """A measure: ``0.412``; ``n/a`` where it has no value."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference with its sign: ``+0.031``, ``-0.002`` (with a minus sign), ``±0``; ``n/a`` where it is none."""
    if math.isnan(value):
        return "n/a"
    rounded = f"{abs(value):.3f}"
    if float(rounded) == 0:
        return "±0"
    return f"+{rounded}" if value > 0 else f"\u2212{rounded}"


def p_said(p_value: float) -> str:
    """``p = 0.012``, ``p = 0.31``, ``p < 0.001``."""
    if p_value < _LEAST_P:
        return f"p < {_LEAST_P}"
    return f"p = {p_value:.3f}" if p_value < _COARSE_P else f"p = {round(p_value, 2):g}"


def seconds_said(seconds: float) -> str:
    """``7.3 µs``, ``0.42 ms``, ``38 ms``, ``1.25 s``."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"
    milliseconds = 1000 * seconds
    if 0 < milliseconds < _LEAST_MS:
        return f"{1000 * milliseconds:.2g} µs"
    if milliseconds >= 10:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds:.2g} ms"


def money_said(amount: float) -> str:
    """An amount in the unit of the prices: ``12.40``, ``0.0031``."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.2g}"


def number_text(number: int | float) -> str:
    """A number of things: ``1,000``, ``37.5``."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


_NOTABLE_SHARE: Final = 0.01


class Tile(NamedTuple):
    """A figure that stands large: what it is, its value, what to know about it."""

    label: str
    value: str
    note: str


class Answer(NamedTuple):
    """What is to be said of one stage, and whether it is good news: "better", "worse", "unsure" or ""."""

    stage: str
    text: str
    kind: str


def ranking_stages(system: SystemFigures) -> list[StageFigures]:
    """The stages that have a ranking."""
    return [stage for stage in system.stages if stage.measures]


def answers(evaluation: Evaluation, system: SystemFigures, lookup: Lookup) -> list[Answer]:
    """What each ranking stage buys and costs, in the order of the stages."""
    stages = ranking_stages(system)
    found = [_retrieved(stage, evaluation, system) for stage in stages[:1]]
    return found + [_changed(stage, before, evaluation.measures, system, lookup) for before, stage in pairwise(stages)]


def _retrieved(stage: StageFigures, evaluation: Evaluation, system: SystemFigures) -> Answer:
    measure = evaluation.measures[0]
    said = f"gives {measure} {value_said(stage.measures[measure])}."
    ceiling = stage.ceilings.get(measure)
    if ceiling is not None:
        said += f" A perfect order of its {stage.hits:.0f} hits would give {value_said(ceiling)}."
    return Answer(stage.stage, f"{said} {_time_said(stage, system)}", "")


def _changed(
    stage: StageFigures, before: StageFigures, measures: Sequence[str], system: SystemFigures, lookup: Lookup
) -> Answer:
    clauses: list[str] = []
    kind = ""
    for measure in measures:
        if measure not in stage.measures or measure not in before.measures:
            continue
        change = lookup.of_stage(system.name, stage.stage, measure)
        difference = stage.measures[measure] - before.measures[measure]
        # What leaves a measure as it is, is worth a word for the first one only.
        if signed(difference) == "±0" and measure != measures[0]:
            continue
        clauses.append(_change_said(measure, stage.measures[measure], difference, change))
        if not kind and signed(difference) != "±0":
            kind = _kind(difference, change)
    changes = f"{'; '.join(clauses)}." if clauses else ""
    return Answer(stage.stage, f"{changes} {_time_said(stage, system)}".strip(), kind)


def _change_said(measure: str, value: float, difference: float, change: Comparison | None) -> str:
    if signed(difference) == "±0":
        return f"leaves {measure} as it is"
    if math.isnan(difference):
        return f"{measure} {value_said(value)}"
    verb = "raises" if difference > 0 else "lowers"
    said = f"{verb} {measure} by {abs(difference):.3f} to {value_said(value)}"
    if change is None:
        return said
    if change.significant:
        return f"{said} ({p_said(change.p_corrected)})"
    return f"{said}, which may be chance ({p_said(change.p_corrected)})"


def _kind(difference: float, change: Comparison | None) -> str:
    if change is None or not change.significant:
        return "unsure"
    return "better" if difference > 0 else "worse"


def _time_said(stage: StageFigures, system: SystemFigures) -> str:
    said = f"Takes {seconds_said(stage.latency.p50)}"
    whole = system.latency.mean
    share = stage.latency.mean / whole if whole > 0 else 0
    if share >= _NOTABLE_SHARE:
        said += f", {100 * share:.0f} % of the time"
    if stage.cost is not None and stage.cost > 0:
        said += f"; costs {money_said(stage.cost)} in all"
    return f"{said}."


def tiles(evaluation: Evaluation, system: SystemFigures, lookup: Lookup) -> list[Tile]:
    """The figures of one system that stand large."""
    measure = evaluation.measures[0]
    stages = ranking_stages(system)
    made: list[Tile] = []
    if stages:
        first, last = stages[0].measures[measure], stages[-1].measures[measure]
        ceiling = stages[-1].ceilings.get(measure)
        reachable = "" if ceiling is None else f"a perfect order of the same hits: {value_said(ceiling)}"
        made.append(Tile(f"{measure} in the end", value_said(last), reachable))
        if len(stages) > 1:
            note = f"{stages[0].stage}: {value_said(first)}"
            if signed(last - first) != "±0" and not _any_significant(lookup, system, measure):
                note += "; the difference may be chance"
            made.append(Tile("gained since retrieval", signed(last - first), note))
    latency = system.latency
    slow = f"95 % within {seconds_said(latency.p95)}, 99 % within {seconds_said(latency.p99)}"
    each = "median time of a query" if evaluation.batch_size == 1 else "median share of a batch's time"
    made.append(Tile(each, seconds_said(latency.p50), slow))
    if system.cost is not None:
        thousand = 1000 * system.cost / max(evaluation.judged, 1)  # the others were not asked
        made.append(Tile("cost of 1,000 queries", money_said(thousand), f"{money_said(system.cost)} for these queries"))
    return made


def _any_significant(lookup: Lookup, system: SystemFigures, measure: str) -> bool:
    """Whether a stage changed the measure by more than chance would; where nothing was compared, nobody knows."""
    found = [lookup.of_stage(system.name, stage.stage, measure) for stage in ranking_stages(system)]
    known = [change for change in found if change is not None]
    return not known or any(change.significant for change in known)


def systems_tiles(evaluation: Evaluation) -> list[Tile]:
    """The figures of several systems that stand large: the best, the fastest, how many are worth a thought."""
    systems, measure = evaluation.systems, evaluation.measures[0]
    answering = [system for system in systems if system.answers] or systems
    best = best_system(systems, measure)
    fastest = min(answering, key=lambda system: (system.latency.p50, -quality_of(system, measure)))
    front = sum(system.on_front for system in systems)
    return [
        Tile(
            f"best {measure}",
            value_said(best.measures.get(measure, 0.0)),
            f"{best.name}, in {seconds_said(best.latency.p50)}",
        ),
        Tile(
            "fastest, median",
            seconds_said(fastest.latency.p50),
            f"{fastest.name}, {measure} {value_said(fastest.measures.get(measure, 0.0))}",
        ),
        Tile("on the Pareto front", f"{front} of {len(systems)}", "no other is as good and as fast"),
    ]
