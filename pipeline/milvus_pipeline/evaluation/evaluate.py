"""Evaluates pipelines on judged queries: quality, latency and cost after each of their stages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from milvus_pipeline.errors import ConfigError, InputError
from milvus_pipeline.evaluation.measures import Judgements, Measures
from milvus_pipeline.evaluation.movements import choose_movements
from milvus_pipeline.evaluation.pareto import best_system, mark_front
from milvus_pipeline.evaluation.records import Evaluation, StageFigures, SystemFigures
from milvus_pipeline.evaluation.runs import OnProgress, OnResults, TreeRun
from milvus_pipeline.evaluation.significance import CORRECTIONS, TESTS, compare_systems
from milvus_pipeline.evaluation.tree import Node, Tree, build_tree
from milvus_pipeline.jobs.manifest import versions_of
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.lifecycle import log_stage_error
from milvus_pipeline.run.loop import initial_results
from milvus_pipeline.text import error_text, short_repr

_PACKAGES: Final = ("ir-measures", "pytrec-eval-terrier", "scipy", "statsmodels")


def evaluate(
    systems: Pipeline | Sequence[Pipeline] | Mapping[str, Pipeline],
    queries: Iterable[str | Query | SearchResult],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    measures: Sequence[str] = ("nDCG@10", "R@100"),
    batch_size: int = 1,
    variants: Mapping[str, Mapping[str, Any]] = {},
    test: str = "t",
    correction: str = "holm",
    prices: Mapping[str, float] = {},
    movements: int = 12,
    warm_up: bool = True,
    on_progress: OnProgress | None = None,
    on_results: OnResults | None = None,
    title: str | None = None,
) -> Evaluation:
    """Run judged queries through pipelines, and measure the ranking after each stage.

    Stages that systems have in common, from the first on and with the same timeout, run once. Every stage is opened
    once and stays open until the last query. Memory holds the queries, a few numbers for each query and stage, and the
    results of a few queries. A query that fails counts as one that found nothing. The measures of a stage are those
    that ir-measures computes for a run written after it.

    Args:
        systems: one pipeline, several with different names, or a mapping of names to pipelines. The first one is the
            baseline. A pipeline's ``sweep`` is ignored; ``variants_of`` makes systems of it.
        queries: with ids. Those without judgements are left out, with a warning. A result that has failed already,
            such as that of a line that could not be read, counts as a failed query.
        qrels: grade by document id, by query id.
        measures: their ir-measures names; systems are ranked by the first one.
        batch_size: queries that go through the stages together. With 1, latencies are what a caller waits.
        variants: path and value of what a sweep varied, by the system's name.
        test: the paired test, "t" or "permutation"; see ``significance.compare_paired``.
        correction: for the number of comparisons: "holm", "bonferroni", "fdr_bh" (Benjamini and Hochberg), "none".
        prices: money per unit of usage, by stage and the provider's word: ``{"cohere.search_units": 0.002}``.
        movements: queries to keep a picture of, at most; see ``movements.LargestChanges``.
        warm_up: run the first query once, uncounted, through the stages that cost nothing and cache no scores.
        on_progress: called with the number of stage runs done and that of all; a run is one query in one stage.
        on_results: called with a system's name and its results for the next few queries, in the queries' order.
        title: of the evaluation; by default the systems' names.

    Raises:
        ConfigError: a name, a measure or an option is wrong, or a system has no stage that gives hits; nothing was run.
        InputError: no query has judgements, or two have the same id; nothing was run.
        StageError: a stage cannot be opened, and no query was run; or a package of the extra ``evaluate`` is missing.
    """
    named = _name_systems(systems)
    _check_options(batch_size, test, correction, prices, movements)
    if unknown := [name for name in variants if name not in named]:
        raise ConfigError(f"{unknown[0]!r} is not a system", f"the systems are {list(named)}", place="variants")
    computed = Measures(measures)
    tree = build_tree(named)
    if unranked := [name for name, path in tree.paths.items() if not path[-1].ranks]:
        raise ConfigError("no stage gives hits to measure", "add a retrieval stage", place=unranked[0])
    judged = select_judged(queries, qrels)
    computed.check(judged.grades)
    run = TreeRun(tree, computed, judged.grades, movements, on_progress, on_results)
    with ExitStack() as opened:
        for pipeline in run.pipelines.values():
            pipeline.open()
            opened.callback(_close, pipeline)
        identities, unidentified = _identities(tree)
        if warm_up:
            run.warm_up(judged.results)
        run.run(judged.results, batch_size)
    figures = {node: tally.figures(prices) for node, tally in run.tallies.items()}
    found = mark_front(
        _system_figures(name, pipeline, run, figures, identities, dict(variants.get(name, {})))
        for name, pipeline in named.items()
    )
    return Evaluation(
        title=title or next(iter(named)) + (f" and {len(named) - 1} more" if len(named) > 1 else ""),
        queries=judged.given,
        judged=len(judged.results),
        batch_size=batch_size,
        measures=computed.names,
        systems=found,
        comparisons=tuple(compare_systems(tree, run.tallies, computed.names, test, correction)),
        test=test,
        correction=correction,
        movements=choose_movements(run.changes, best_system(found, computed.names[0]).name, movements),
        warnings=(
            *judged.warnings,
            *unidentified,
            *run.warnings(),
            *(f"{name} has no value for some rankings: {reason}" for name, reason in computed.failures.items()),
            *_price_warnings({unit for tally in run.tallies.values() for unit in tally.usage}, figures, prices),
        ),
        versions=_versions(named.values()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _system_figures(
    name: str,
    pipeline: Pipeline,
    run: TreeRun,
    figures: Mapping[Node, StageFigures],
    identities: Mapping[Node, Mapping[str, Mapping[str, Any]]],
    variant: Mapping[str, Any],
) -> SystemFigures:
    path = run.tree.paths[name]
    stages = tuple(figures[node] for node in path)
    costs = [stage.cost for stage in stages if stage.cost is not None]
    return SystemFigures(
        name=name,
        variant=variant,
        config=pipeline.to_config(),
        identity={stage: identity for node in path for stage, identity in identities[node].items()},
        stages=stages,
        statuses=run.statuses(name),
        cost=sum(costs) if len(costs) == len(stages) else None,
        per_query={
            measure: {query: value for query, value in zip(run.judged, values, strict=True) if not math.isnan(value)}
            for measure, values in run.tallies[path[-1]].values.items()
        },
    )


@dataclass(frozen=True, slots=True)
class JudgedQueries:
    """The queries that have judgements.

    Args:
        results: to start from, one per query; that of a query that could not be read has failed already.
        grades: grade by document id, by query id, in the order of ``results``.
        given: number of all queries given.
        warnings: what was left out.
    """

    results: list[SearchResult]
    grades: Judgements
    given: int
    warnings: tuple[str, ...]


def select_judged(
    queries: Iterable[str | Query | SearchResult], qrels: Mapping[str, Mapping[str, int]]
) -> JudgedQueries:
    """Return the queries that have judgements, in their order; no others are kept in memory.

    Raises:
        InputError: there are none, or two have the same id.
    """
    results: dict[str, SearchResult] = {}
    others: list[str | None] = []  # the first few ids
    given = 0
    for query in queries:
        given += 1
        result = query if isinstance(query, SearchResult) else initial_results([query])[0]
        name = None if result.query.id is None else str(result.query.id)
        if name is None or not qrels.get(name):
            others = others if len(others) == 3 else [*others, name]
            continue
        if name in results:
            raise InputError(f"two queries have the id {name!r}", "judgements refer to queries by their ids")
        results[name] = result
    if not results:
        raise _no_judged_query(given, others, [name for name, grades in qrels.items() if grades])
    grades = {name: qrels[name] for name in results}
    return JudgedQueries(list(results.values()), grades, given, tuple(_judgement_warnings(given, grades, qrels)))


def _no_judged_query(given: int, others: list[str | None], judged: list[str]) -> InputError:
    if not given or not judged:
        return InputError("there are no judgements" if given else "there are no queries")
    known = ", ".join(repr(name) for name in others if name is not None)
    theirs = f"their ids begin with {known}" if known else "they have no ids"
    return InputError(
        f"none of the {given} queries has judgements: {theirs}, and the judged ids begin with "
        f"{', '.join(map(repr, judged[:3]))} (of {len(judged)})",
        "use the same ids in both",
    )


def _judgement_warnings(given: int, judged: Judgements, qrels: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    if left_out := given - len(judged):
        yield f"{left_out} of {given} queries have no judgements, and were left out"
    if not_run := sum(bool(grades) for grades in qrels.values()) - len(judged):
        yield f"{not_run} of the judged queries were not given; their judgements were left out"
    if hopeless := sum(all(grade <= 0 for grade in grades.values()) for grades in judged.values()):
        yield f"{hopeless} of {len(judged)} queries have no document judged relevant; most measures are 0 for them"
    if len(judged) == 1:
        yield "one query cannot show a difference between rankings: every p-value is 1, and no interval means anything"


def _name_systems(systems: Pipeline | Sequence[Pipeline] | Mapping[str, Pipeline]) -> dict[str, Pipeline]:
    """Return the systems by name."""
    if isinstance(systems, Pipeline):
        systems = [systems]
    given = list(systems.items()) if isinstance(systems, Mapping) else [(each.name, each) for each in systems]
    named = dict(given)
    if not named:
        raise ConfigError("give at least one pipeline", place="systems")
    if len(named) < len(given):
        name, _ = Counter(name for name, _ in given).most_common(1)[0]
        step = "change the `name` of one, or pass a mapping of names to pipelines"
        raise ConfigError(f"two pipelines have the name {name!r}", step, place="systems")
    return named


def _check_options(batch_size: int, test: str, correction: str, prices: Mapping[str, float], movements: int) -> None:
    """Raise ConfigError if an option is wrong."""
    for option, number, least in (("batch_size", batch_size, 1), ("movements", movements, 0)):
        if type(number) is not int or number < least:
            raise ConfigError(f"must be a whole number of at least {least}, got {short_repr(number)}", place=option)
    for option, word, words in (("test", test, TESTS), ("correction", correction, CORRECTIONS)):
        if word not in words:
            raise ConfigError(f"must be one of {', '.join(words)}, got {short_repr(word)}", place=option)
    for unit, price in prices.items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not math.isfinite(price) or price < 0:
            raise ConfigError(f"must be a number of at least 0, got {short_repr(price)}", place=f"prices: {unit}")
        if "." not in unit:
            raise ConfigError(
                "must name a stage and a word of its usage, such as cohere.search_units", place=f"prices: {unit}"
            )


def _identities(tree: Tree) -> tuple[dict[Node, dict[str, Mapping[str, Any]]], list[str]]:
    """Return the identities of the open stages by node and stage name, and warnings for those that failed."""
    found: dict[Node, dict[str, Mapping[str, Any]]] = {}
    warnings = []
    for node in tree:
        found[node] = {}
        for member in node.stage.family():
            try:
                if identity := dict(member.identity()):
                    found[node][member.name] = identity
            except Exception as error:
                warnings.append(f"{node.system}: the identity of {member.name} is unknown: {error_text(error)}")
    return found, warnings


def _price_warnings(
    units: set[str], figures: Mapping[Node, StageFigures], prices: Mapping[str, float]
) -> Iterator[str]:
    """Yield warnings about prices without usage, and usage without a price."""
    for price in prices:
        if price not in units:
            yield f"the price of {price} matches no usage; the usage was {', '.join(sorted(units)) or 'none'}"
    for stage in dict.fromkeys(one.stage for one in figures.values() if prices and one.cost is None):
        yield f"{stage} has usage without a price, so its cost is not known; give a price of 0 if it is free"


def _versions(pipelines: Iterable[Pipeline]) -> dict[str, str]:
    """Return the versions of Python and of the packages that ran, measured and compared."""
    versions = dict(item for pipeline in pipelines for item in versions_of(pipeline).items())
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _close(pipeline: Pipeline) -> None:
    """Close the pipeline; a failure is only logged, because all figures are complete."""
    with log_stage_error():
        pipeline.close()
