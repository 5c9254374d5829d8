"""What an evaluation found out, as plain records: figures of each stage of each system, comparisons, movements.

A *system* is a pipeline that was evaluated: one of several configurations, or one variant of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from milvus_pipeline.explain import Movement
from milvus_pipeline.files.plain import plain
from milvus_pipeline.records import Status


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, in seconds a query.

    With one query at a time (``batch_size`` 1) these are the times that a caller waits. In larger batches each query
    counts with its share, the batch's time over the batch's size, which tells of throughput and not of waiting.
    """

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class StageFigures:
    """What one stage of one system gave and took, over all queries.

    Args:
        stage: its name in the pipeline.
        type: its registered type.
        hits: mean number of hits after it.
        measures: of the ranking as it is after this stage, by name; the mean over the judged queries for nearly all
            of them, and what ir-measures gives for a run written after this stage for all. A query without hits
            counts as 0. Empty before the first stage that gives hits. NaN where no query has a value.
        ceilings: the same measures where the very same hits stood in the best order: what a perfect reranker behind
            this stage could reach.
        latency: of this stage alone, with its fallback, for the queries that came to it.
        elapsed: from the beginning of the query to the end of this stage, for the same queries.
        usage: what it cost at its service, summed over all queries, in the provider's own words; words of a fallback
            that stood in are led by its name.
        cost: that in money, by the prices given; None where none were, or none for this stage's usage.
        cached: texts whose score came from the score cache; where there are any, the latency is not the reranker's.
        statuses: number of queries by what became of the stage for them: "ok", "partial", "skipped" (also where a
            fallback did its work), "failed". Those that had failed before are in none of them.
        reasons: number of queries by reason code, of those where it is not "ok".
        shared: the stage ran once for several systems, whose stages up to here are the same.
    """

    stage: str
    type: str
    hits: float
    measures: Mapping[str, float]
    ceilings: Mapping[str, float]
    latency: Latency
    elapsed: Latency
    usage: Mapping[str, int | float] = field(default_factory=dict)
    cost: float | None = None
    cached: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    shared: bool = False


@dataclass(frozen=True, slots=True)
class SystemFigures:
    """One system: what it is, what it gave after each stage, and in the end.

    Args:
        name: tells it from the others; a sweep's variants are named after what they vary.
        variant: place and value of what the sweep varied (``{"milvus_search.limit": 100}``); empty without a sweep.
        config: the pipeline's configuration.
        identity: ``Stage.identity`` of its stages and their fallbacks, by name; without those that have nothing to say.
        stages: figures in the order of the stages; a fallback that stood in counts with the stage it stood in for.
        statuses: number of queries by the status of their result.
        cost: of all stages, by the prices given, also of those that it shares; None where that of one is not known.
        per_query: measure, then query id, then value, of the final ranking, for the judged queries.
        on_front: it answers, and no other system is at least as good in quality and in latency, and better in one.
    """

    name: str
    variant: Mapping[str, Any]
    config: Mapping[str, Any]
    identity: Mapping[str, Mapping[str, Any]]
    stages: tuple[StageFigures, ...]
    statuses: Mapping[Status, int]
    cost: float | None = None
    per_query: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    on_front: bool = False

    @property
    def measures(self) -> Mapping[str, float]:
        """The measures of the final ranking."""
        return self.stages[-1].measures

    @property
    def latency(self) -> Latency:
        """Of the whole pipeline."""
        return self.stages[-1].elapsed

    @property
    def answers(self) -> bool:
        """Whether a query came through: where all failed, the latency is that of nothing."""
        return set(self.statuses) != {"failed"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rankings of the same queries, compared in one measure, query by query.

    Args:
        measure: its ir-measures name.
        system: name of the system whose ranking is compared.
        stage: the stage after which; the last one where whole systems are compared.
        baseline_system: with whose.
        baseline_stage: after which of its stages. Within one system this is the ranking stage before ``stage``.
        difference: mean of the queries' differences, ``system`` less baseline.
        low: lower end of the 95 % confidence interval of ``difference``.
        high: its upper end.
        p_value: of the paired test; 1 where no query differs.
        p_corrected: after the correction for all comparisons of this measure in its family: those of stages, of all
            systems together, or those of systems.
        better: number of queries for which ``system`` is better.
        worse: for which it is worse.
        same: for which there is no difference.
    """

    measure: str
    system: str
    stage: str
    baseline_system: str
    baseline_stage: str
    difference: float
    low: float
    high: float
    p_value: float
    p_corrected: float
    better: int
    worse: int
    same: int

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_corrected < 0.05


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was found out.

    Args:
        title: name of what was evaluated.
        queries: number of queries that were given.
        judged: how many of them have judgements. Those were asked, and all figures are theirs.
        batch_size: queries that went through the stages together.
        measures: ir-measures names, as they were asked for; the first one is what systems are ranked by.
        systems: in the order given; the first one is the baseline of the others.
        comparisons: each stage with the ranking stage before it, then each system with the first one. A stage that
            changed no ranking has none; one that several systems share has the same one in each of them.
        test: the paired test's name.
        correction: the name of the correction for multiple comparisons.
        movements: of the queries that a picture is worth, at most a few dozen, however many there were.
        warnings: what the reader should know.
        versions: of Python and the packages that the figures depend on.
        created: when, in UTC, ISO 8601.
    """

    title: str
    queries: int
    judged: int
    batch_size: int
    measures: tuple[str, ...]
    systems: tuple[SystemFigures, ...]
    comparisons: tuple[Comparison, ...] = ()
    test: str = "t"
    correction: str = "holm"
    movements: tuple[Movement, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    def system(self, name: str) -> SystemFigures:
        """The system of this name. KeyError where there is none."""
        for system in self.systems:
            if system.name == name:
                return system
        raise KeyError(f"no system is named {name!r}; there are {[system.name for system in self.systems]}")

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data that JSON can hold; a number that is none (NaN, an infinity) is None."""
        data: dict[str, Any] = plain(self)
        return data


class Lookup:
    """Finds comparisons at once, of which an evaluation of many systems has thousands."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._within: dict[str, list[Comparison]] = {}
        self._stages: dict[tuple[str, str, str], Comparison] = {}
        self._systems: dict[tuple[str, str], Comparison] = {}
        for found in evaluation.comparisons:
            if found.system == found.baseline_system:
                self._stages[found.system, found.stage, found.measure] = found
                self._within.setdefault(found.system, []).append(found)
            else:
                self._systems[found.system, found.measure] = found

    def of_stage(self, system: str, stage: str, measure: str) -> Comparison | None:
        """A stage with the ranking stage before it; None where none was made."""
        return self._stages.get((system, stage, measure))

    def within(self, system: str) -> list[Comparison]:
        """Those of the system's stages, in every measure."""
        return self._within.get(system, [])

    def of_system(self, system: str, measure: str) -> Comparison | None:
        """A system with the baseline; None where none was made."""
        return self._systems.get((system, measure))

    def __len__(self) -> int:
        return len(self._stages) + len(self._systems)
