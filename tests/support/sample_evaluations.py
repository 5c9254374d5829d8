"""Evaluations made by hand, for tests of reports and tables: small and large, with failures, with hostile texts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from milvus_pipeline.evaluation.records import Comparison, Evaluation, Latency, StageFigures, SystemFigures
from milvus_pipeline.explain import Movement, Ranking

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "</title></svg><script>alert(2)</script>",
    "\u202egnp.exe\u202c \x1b[31mred\x07 \x00nul \ud800 lone",
    "\"' onmouseover='alert(3)' x=\"",
    "{{ 7 * 7 }} {% raw %} <!-- -->",
    "ما هو مقياس الأهمية؟ 検索とは何ですか 🧑‍🔬",
)
MEASURES = ("nDCG@10", "R@100")
STAGES = ("milvus_search", "late_interaction", "truncate")


def latency(p50: float) -> Latency:
    """Return percentiles that are plausible for a median."""
    return Latency(mean=1.1 * p50, p50=p50, p95=1.6 * p50, p99=2.4 * p50)


def system(
    name: str = "papers", *, gain: float = 0.05, rerank: float = 0.18, variant: Mapping[str, Any] | None = None
) -> SystemFigures:
    """Return a system of four stages: encode, search, rerank, truncate."""
    found, reranked = 0.36, 0.36 + gain
    stages = (
        StageFigures("encode", "encode", 0.0, {}, {}, latency(0.008), latency(0.008), statuses={"ok": 225}),
        StageFigures(
            "milvus_search",
            "milvus_search",
            100.0,
            {"nDCG@10": found, "R@100": 0.78},
            {"nDCG@10": 0.91, "R@100": 0.78},
            latency(0.0042),
            latency(0.0122),
            statuses={"ok": 225},
        ),
        StageFigures(
            "late_interaction",
            "late_interaction",
            100.0,
            {"nDCG@10": reranked, "R@100": 0.78},
            {"nDCG@10": 0.91, "R@100": 0.78},
            latency(rerank),
            latency(rerank + 0.0122),
            usage={"requests": 225, "search_units": 225},
            cost=0.45,
            statuses={"ok": 222, "skipped": 3},
            reasons={"deadline": 2, "unavailable": 1},
        ),
        StageFigures(
            "truncate",
            "truncate",
            10.0,
            {"nDCG@10": reranked, "R@100": 0.47},
            {"nDCG@10": 0.71, "R@100": 0.47},
            latency(0.00003),
            latency(rerank + 0.0123),
            statuses={"ok": 225},
        ),
    )
    return SystemFigures(
        name=name,
        variant=variant or {},
        config={"name": name, "stages": [{"type": stage.type} for stage in stages]},
        identity={"late_interaction": {"model": "sentence-transformers/all-MiniLM-L6-v2", "revision": "c9745ed1"}},
        stages=stages,
        statuses={"ok": 222, "degraded": 3},
        cost=0.45,
        per_query={"nDCG@10": {"1": 0.4, "2": 0.5}},
    )


def changes(of: SystemFigures) -> list[Comparison]:
    """Compare each ranking stage with the one before it, in each measure."""
    made = []
    stages = [stage for stage in of.stages if stage.measures]
    for before, stage in pairwise(stages):
        for measure in MEASURES:
            difference = stage.measures[measure] - before.measures[measure]
            p_value = 1.0 if difference == 0 else 0.0004
            made.append(_comparison(measure, of.name, stage.stage, of.name, before.stage, difference, p_value))
    return made


def _comparison(
    measure: str, name: str, stage: str, baseline: str, baseline_stage: str, difference: float, p_value: float
) -> Comparison:
    low, high = difference - 0.02, difference + 0.02
    counts = (130, 60, 35) if difference > 0 else (20, 60, 145) if difference < 0 else (0, 0, 225)
    return Comparison(
        measure, name, stage, baseline, baseline_stage, difference, low, high, p_value, min(1.0, 2 * p_value), *counts
    )


def movement(
    number: int, *, name: str = "papers", documents: int = 100, kept: int = 10, texts: Sequence[str] = ()
) -> Movement:
    """Return one query whose candidates are reranked and cut; some are relevant, and one relevant one was not found."""
    chance = random.Random(number)  # noqa: S311 - documents that are the same in every run
    found = [f"{chance.randrange(1, 1400)}-{place}" for place in range(documents)]
    reranked = sorted(found, key=lambda document: found.index(document) + chance.gauss(0, 12))
    relevant = chance.sample(found[:60], 7)
    judged = {document: 1 + place % 4 for place, document in enumerate(relevant)} | {found[1]: 0, "never-found": 3}
    rankings = [
        _ranking(stage, ranked, judged, chance)
        for stage, ranked in zip(STAGES, (found, reranked, reranked[:kept]), strict=True)
    ]
    words = texts or ("boundary layer flow over a flat plate at high speed with heat transfer and suction",)
    beginnings = {document: words[place % len(words)] for place, document in enumerate(found)}
    query = texts[number % len(texts)] if texts else "what similarity laws must be obeyed by aeroelastic models?"
    return Movement(name, str(number), query, tuple(rankings), beginnings, judged)


def _ranking(stage: str, documents: Sequence[str], judged: Mapping[str, int], chance: random.Random) -> Ranking:
    gained = sum(judged.get(document, 0) / math.log2(place + 1) for place, document in enumerate(documents[:10], 1))
    scores = tuple(None if stage == "truncate" else 1 - place / 200 for place in range(len(documents)))
    return Ranking(
        stage, stage, tuple(documents), scores, chance.uniform(0.001, 0.2), measures={"nDCG@10": gained / 12}
    )


def one_system(movements: int = 6) -> Evaluation:
    """Return the evaluation of one system, with movements of some queries."""
    only = system()
    return Evaluation(
        title="papers",
        queries=225,
        judged=225,
        batch_size=1,
        measures=MEASURES,
        systems=(only,),
        comparisons=tuple(changes(only)),
        movements=tuple(movement(number) for number in range(movements)),
        warnings=("the latency of late_interaction was measured on a machine that did other work, too",),
        versions={"python": "3.12.3", "milvus-search-pipeline": "0.1.0", "ir-measures": "0.4.1"},
        created="2026-11-23T08:40:00+00:00",
    )


def sweep(count: int = 24) -> Evaluation:
    """Return a sweep over limit and nprobe; quality and latency rise with both."""
    systems: list[SystemFigures] = []
    comparisons: list[Comparison] = []
    for number in range(count):
        limit, nprobe = (10, 20, 50, 100, 200, 400)[number % 6], 4 ** (number // 6)
        gain = 0.012 * math.log2(limit) + 0.004 * (number // 6) - (0.015 if number % 5 == 3 else 0)
        variant = {"milvus_search.limit": limit, "milvus_search.params.nprobe": nprobe}
        name = ", ".join(f"{place.split('.')[-1]}={value}" for place, value in variant.items())
        made = system(name, gain=gain, rerank=0.0018 * limit + 0.002 * nprobe, variant=variant)
        systems.append(made)
        comparisons += changes(made)
        if number:
            for measure in MEASURES:
                difference = made.measures[measure] - systems[0].measures[measure]
                p_value = 0.0001 if abs(difference) > 0.03 else 0.4
                comparisons.append(
                    _comparison(measure, name, "truncate", systems[0].name, "truncate", difference, p_value)
                )
    front = [
        made
        for made in systems
        if not any(
            other.measures["nDCG@10"] >= made.measures["nDCG@10"] and other.latency.p50 < made.latency.p50
            for other in systems
        )
    ]
    return replace(
        one_system(movements=4),
        title="papers: a sweep",
        systems=tuple(replace(made, on_front=made in front) for made in systems),
        comparisons=tuple(comparisons),
        movements=tuple(movement(number, name=systems[-1].name) for number in range(4)),
    )


def hostile() -> Evaluation:
    """Return an evaluation whose names, texts, warnings and configurations contain markup and control characters."""
    bad = HOSTILE[0]
    only = replace(system(bad), config={"name": bad, "stages": [{"type": HOSTILE[1]}]}, identity={bad: {bad: bad}})
    stages = tuple(replace(stage, stage=f"{stage.stage}{HOSTILE[1]}") for stage in only.stages)
    only = replace(only, stages=stages)
    moved = [
        replace(movement(number, name=bad, texts=HOSTILE), query_id=HOSTILE[number % len(HOSTILE)])
        for number in range(6)
    ]
    ids = {document: f"{HOSTILE[number % 4]}{number}" for number, document in enumerate(moved[0].documents)}
    rankings = tuple(
        replace(
            ranking,
            stage=HOSTILE[3],
            documents=tuple(ids[document] for document in ranking.documents),
            status="partial",
            reason=bad,
        )
        for ranking in moved[0].rankings
    )
    judged = {ids.get(document, document): grade for document, grade in (moved[0].judged or {}).items()}
    moved[0] = replace(moved[0], rankings=rankings, judged=judged, beginnings=dict.fromkeys(ids.values(), bad))
    return Evaluation(
        title=bad,
        queries=6,
        judged=6,
        batch_size=8,
        measures=MEASURES,
        systems=(only,),
        comparisons=tuple(changes(only)),
        movements=tuple(moved),
        warnings=HOSTILE,
        versions={bad: bad},
        created=bad,
    )


def bare() -> Evaluation:
    """Return a minimal evaluation: one stage that found nothing for failed queries, no movements."""
    nothing = latency(0.0)
    only = StageFigures(
        "listed_search", "listed_search", 0.0, {"nDCG@10": 0.0}, {"nDCG@10": 0.0}, nothing, nothing,
        statuses={"failed": 2}, reasons={"error": 2},
    )  # fmt: skip
    figures = SystemFigures("bare", {}, {"stages": [{"type": "listed_search"}]}, {}, (only,), {"failed": 2})
    return Evaluation("bare", 2, 2, 1, ("nDCG@10",), (figures,))
