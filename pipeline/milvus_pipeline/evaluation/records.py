"""The results of an evaluation as plain records: figures of each stage of each system, comparisons, movements.

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
    """Seconds per query: the mean and three percentiles.

    With one query at a time (``batch_size`` 1) these are the times that a caller waits. In larger batches each query
    counts with its share, the time of the batch divided by its size, which describes throughput and not waiting.
    """

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class StageFigures:
    """Quality, latency and cost of one stage of one system, over all queries.

    Args:
        stage: its name in the pipeline.
        type: its registered type.
        hits: mean number of hits after it.
        measures: measures of the ranking after this stage, by name. Nearly all are means over the judged queries; all
            are what ir-measures gives for a run written after this stage. A query without hits counts as 0. Empty
            before the first stage that gives hits. NaN if no query has a value.
        ceilings: the same measures for the same hits in the best order: what a perfect reranker behind this stage
            could reach.
        latency: of this stage alone, with its fallback, for the queries that reached it.
        elapsed: from the start of the query to the end of this stage, for the same queries.
        usage: what its service counted, summed over all queries, in the provider's own words. The words of a fallback
            that stood in are prefixed with its name.
        cost: the usage in money, by the prices given; None without prices, or without one for this stage's usage.
        cached: texts whose score came from the score cache. If there are any, the latency is not the reranker's.
        statuses: number of queries by the outcome of the stage: "ok", "partial", "skipped" (also if a fallback did its
            work), "failed". Queries that had failed before are not counted.
        reasons: number of queries by reason code, for outcomes other than "ok".
        shared: the stage ran once for several systems whose stages up to here are the same.
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
    """One system: its configuration, and its figures after each stage and at the end.

    Args:
        name: unique within the evaluation; variants of a sweep are named after what they vary.
        variant: path and value of what the sweep varied (``{"milvus_search.limit": 100}``); empty without a sweep.
        config: the pipeline's configuration.
        identity: ``Stage.identity`` of its stages and their fallbacks, by name; without stages that have none.
        stages: figures in the order of the stages. A fallback that stood in counts with the stage it replaced.
        statuses: number of queries by the status of their result.
        cost: of all stages, shared ones included; None if the cost of one is not known.
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
    def ranking_stages(self) -> tuple[StageFigures, ...]:
        """The stages that have a ranking to measure."""
        return tuple(stage for stage in self.stages if stage.measures)

    @property
    def latency(self) -> Latency:
        """The latency of the whole pipeline."""
        return self.stages[-1].elapsed

    @property
    def answers(self) -> bool:
        """Whether a query succeeded; if all failed, the latency says nothing."""
        return set(self.statuses) != {"failed"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rankings of the same queries, compared in one measure, query by query.

    Args:
        measure: its ir-measures name.
        system: name of the system whose ranking is compared.
        stage: the stage after which; the last one if whole systems are compared.
        baseline_system: name of the system it is compared with.
        baseline_stage: after which of its stages. Within one system this is the ranking stage before ``stage``.
        difference: mean of the differences per query, ``system`` minus baseline.
        low: lower end of the 95 % confidence interval of ``difference``.
        high: its upper end.
        p_value: of the paired test; 1 if no query differs.
        p_corrected: corrected for all comparisons of this measure in its family: those of stages, of all systems
            together, or those of systems.
        better: number of queries for which ``system`` is better.
        worse: number of queries for which it is worse.
        same: number of queries without a difference.
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
    """The results of ``evaluate``.

    Args:
        title: name of the evaluation.
        queries: number of queries given.
        judged: how many of them have judgements. Only those were run, and all figures are theirs.
        batch_size: queries that went through the stages together.
        measures: ir-measures names as given; systems are ranked by the first one.
        systems: in the order given; the first one is the baseline of the others.
        comparisons: each stage with the ranking stage before it, then each system with the first one. A stage that
            changed no ranking has none; one that several systems share has the same one in each of them.
        test: the paired test's name.
        correction: the name of the correction for multiple comparisons.
        movements: of the queries that changed most; at most a few dozen, however many queries there were.
        warnings: what the reader should know.
        versions: of Python and the packages that the figures depend on.
        created: time in UTC, ISO 8601.
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
        """Return the system of this name. KeyError if there is none."""
        for system in self.systems:
            if system.name == name:
                return system
        raise KeyError(f"no system is named {name!r}; there are {[system.name for system in self.systems]}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data that JSON can hold; NaN and infinities are None."""
        data: dict[str, Any] = plain(self)
        return data


class ComparisonIndex:
    """Finds a comparison in constant time; an evaluation of many systems has thousands."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._found = {
            (one.system, one.stage if one.system == one.baseline_system else "", one.measure): one
            for one in evaluation.comparisons
        }

    def of_stage(self, system: str, stage: str, measure: str) -> Comparison | None:
        """Return the comparison of a stage with the ranking stage before it; None if there is none."""
        return self._found.get((system, stage, measure))

    def of_system(self, system: str, measure: str) -> Comparison | None:
        """Return the comparison of a system with the baseline; None if there is none."""
        return self._found.get((system, "", measure))
