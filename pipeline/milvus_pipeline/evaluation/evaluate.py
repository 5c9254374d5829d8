"""Quality, latency and cost of pipelines on judged queries, after each of their stages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from milvus_pipeline.errors import ConfigError, InputError
from milvus_pipeline.evaluation.measures import Judgements, Measures
from milvus_pipeline.evaluation.movements import chosen_movements
from milvus_pipeline.evaluation.pareto import best_system, mark_front
from milvus_pipeline.evaluation.records import Evaluation, StageFigures, SystemFigures
from milvus_pipeline.evaluation.runs import Progress, Results, Walk
from milvus_pipeline.evaluation.significance import CORRECTIONS, TESTS, Tallies, compared
from milvus_pipeline.evaluation.tree import Node, Tree, tree_of
from milvus_pipeline.jobs.manifest import versions_of
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.lifecycle import unclosed_told
from milvus_pipeline.run.loop import started
from milvus_pipeline.text import error_text, short_repr


@dataclass(frozen=True, slots=True)
class Asked:
    """The queries to ask.

    Args:
        results: to start from, one a query; one that cannot be run is failed already.
        judged: grade by document id, by query id, in the order of ``results``.
        given: number of all queries that were given.
        warnings: what was left out.
    """

    results: list[SearchResult]
    judged: Judgements
    given: int
    warnings: tuple[str, ...]


def asked_of(queries: Iterable[str | Query | SearchResult], qrels: Mapping[str, Mapping[str, int]]) -> Asked:
    """The queries that have judgements, in their order; the others are not even kept.

    Raises:
        InputError: there are none, or two have the same id.
    """
    results: dict[str, SearchResult] = {}
    others: list[str | None] = []  # the first few ids
    given = 0
    for query in queries:
        given += 1
        result = query if isinstance(query, SearchResult) else started([query])[0]
        name = None if result.query.id is None else str(result.query.id)
        if name is None or not qrels.get(name):
            others = others if len(others) == 3 else [*others, name]
            continue
        if name in results:
            raise InputError(f"the id {name!r} is that of two queries", "an id says which judgements are a query's")
        results[name] = result
    if not results:
        raise InputError(_nothing_in_common(given, others, [name for name, grades in qrels.items() if grades]))
    judged = {name: qrels[name] for name in results}
    return Asked(list(results.values()), judged, given, tuple(_warnings(given, judged, qrels)))


def _nothing_in_common(given: int, others: list[str | None], judged: list[str]) -> str:
    if not given:
        return "there are no queries"
    if not judged:
        return "there are no judgements"
    known = [name for name in others if name is not None]
    theirs = f"their ids begin with {', '.join(map(repr, known))}" if known else "they have no ids"
    return (
        f"none of the {given} queries has judgements: {theirs}, and judged are {', '.join(map(repr, judged[:3]))} "
        f"(of {len(judged)}); the ids must be the same"
    )


def _warnings(given: int, judged: Judgements, qrels: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    if left_out := given - len(judged):
        yield f"{left_out} of {given} queries have no judgements, and were left out"
    if not_asked := sum(bool(grades) for grades in qrels.values()) - len(judged):
        yield f"{not_asked} of the judged queries are not among those asked; their judgements were left out"
    if hopeless := sum(all(grade <= 0 for grade in grades.values()) for grades in judged.values()):
        yield f"{hopeless} of {len(judged)} queries have nothing judged relevant; most measures are 0 for them"
    if len(judged) == 1:
        yield "one query tells of no difference between rankings: every p-value is 1, and no interval means anything"


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
    on_progress: Progress | None = None,
    on_results: Results | None = None,
    title: str | None = None,
) -> Evaluation:
    """Run judged queries through pipelines, and measure the ranking after each stage.

    Stages that systems have in common, from the first on and with the same timeout, run once. All stages are open from
    the first query to the last one, each once. Memory holds the queries, a few numbers for each query and stage, and
    the results of a handful of queries. A query that fails counts as one that found nothing. What the measures of a
    stage are is what ir-measures gives for a run written after it.

    Args:
        systems: one pipeline, several of different names, or names and pipelines. The first one is the baseline. What
            a pipeline's ``sweep`` describes is not looked at; ``variants_of`` makes systems of it.
        queries: with ids. Those without judgements are left out, and told in the warnings. A result that has failed
            already, such as that of a line that could not be read, counts as a query that failed.
        qrels: grade by document id, by query id.
        measures: their ir-measures names; by the first one systems are ranked.
        batch_size: queries that go through the stages together. With 1, latencies are what a caller waits.
        variants: place and value of what a sweep varied, by the system's name.
        test: the paired test, "t" or "permutation"; see ``statistics.paired``.
        correction: for the number of comparisons: "holm", "bonferroni", "fdr_bh" (Benjamini and Hochberg), "none".
        prices: money a unit of usage, by stage and the provider's word: ``{"cohere.search_units": 0.002}``.
        movements: queries to keep a picture of, at most; see ``gallery``.
        warm_up: run the first query once, uncounted, as far as that costs nothing and leaves no scores in a cache.
        on_progress: is called with the number of stage runs done and that of all, a run being one query in one stage.
        on_results: is called with a system's name and its results for the next few queries, in the queries' order.
        title: of the evaluation; by default what the systems are named.

    Raises:
        ConfigError: a name, a measure or an option is wrong, or nothing in a system gives hits. Nothing was run.
        InputError: no query has judgements, or two have the same id. Nothing was run.
        StageError: a stage cannot be opened, and no query was run; or a package of the extra ``evaluate`` is missing.
    """
    named = _named(systems)
    _check(named, variants, batch_size, test, correction, prices, movements)
    taken = Measures(measures)
    tree = tree_of(named)
    _check_hits(tree)
    asked = asked_of(queries, qrels)
    taken.tried(asked.judged)
    walk = Walk(tree, taken, asked.judged, movements, on_progress, on_results)
    with ExitStack() as opened:
        for pipeline in walk.pipelines.values():
            pipeline.open()
            opened.callback(_close, pipeline)
        identities, unknown = _identities(tree)
        if warm_up:
            walk.warm_up(asked.results)
        walk.run(asked.results, batch_size)
    figures = {node: tally.figures(prices) for node, tally in walk.tallies.items()}
    found = mark_front(
        SystemFigures(
            name=name,
            variant=dict(variants.get(name, {})),
            config=pipeline.to_config(),
            identity={stage: seen for node in tree.paths[name] for stage, seen in identities[node].items()},
            stages=tuple(figures[node] for node in tree.paths[name]),
            statuses=walk.statuses(name),
            cost=_sum([figures[node] for node in tree.paths[name]]),
            per_query=_per_query(walk.tallies[tree.paths[name][-1]].values, asked),
        )
        for name, pipeline in named.items()
    )
    return Evaluation(
        title=title or _title(list(named)),
        queries=asked.given,
        judged=len(asked.results),
        batch_size=batch_size,
        measures=taken.names,
        systems=found,
        comparisons=tuple(compared(tree, walk.tallies, taken.names, test, correction)),
        test=test,
        correction=correction,
        movements=chosen_movements(walk.galleries, best_system(found, taken.names[0]).name, movements),
        warnings=(
            *asked.warnings,
            *unknown,
            *walk.warnings(),
            *(f"{name} has no value for some rankings: {reason}" for name, reason in taken.lacking.items()),
            *_price_warnings(walk.tallies, figures, prices),
        ),
        versions=_versions(named.values()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _named(systems: Pipeline | Sequence[Pipeline] | Mapping[str, Pipeline]) -> dict[str, Pipeline]:
    """The systems by their names."""
    if isinstance(systems, Mapping):
        pairs = list(systems.items())
    else:
        pairs = [(pipeline.name, pipeline) for pipeline in ([systems] if isinstance(systems, Pipeline) else systems)]
    if not pairs:
        raise ConfigError("systems: give at least one pipeline")
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(
            f"systems: {twice!r} is the name of two pipelines", "change the `name` of one, or pass names and pipelines"
        )
    return named


def _check(
    named: Mapping[str, Pipeline],
    variants: Mapping[str, Mapping[str, Any]],
    batch_size: int,
    test: str,
    correction: str,
    prices: Mapping[str, float],
    movements: int,
) -> None:
    """ConfigError where an option is wrong."""
    for option, value, least in (("batch_size", batch_size, 1), ("movements", movements, 0)):
        if type(value) is not int or value < least:
            raise ConfigError(f"must be a whole number of at least {least}, is {short_repr(value)}", place=str(option))
    for option, word, words in (("test", test, TESTS), ("correction", correction, CORRECTIONS)):
        if word not in words:
            raise ConfigError(f"must be one of {', '.join(words)}", f"is {short_repr(word)}", place=str(option))
    if unknown := [name for name in variants if name not in named]:
        raise ConfigError(f"variants: {unknown[0]!r} is the name of no system", f"there are {list(named)}")
    for unit, price in prices.items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not math.isfinite(price) or price < 0:
            raise ConfigError(f"prices: {unit} must be a number of at least 0, is {short_repr(price)}")
        if "." not in unit:
            raise ConfigError(f"prices: {unit!r} must be a stage and a word of its usage, as cohere.search_units is")


def _check_hits(tree: Tree) -> None:
    for name, path in tree.paths.items():
        if not path[-1].ranks:
            raise ConfigError(
                "no stage gives hits, so there is nothing to measure", "add a retrieval stage", place=name
            )


def _identities(tree: Tree) -> tuple[dict[Node, dict[str, Mapping[str, Any]]], list[str]]:
    """What the open stages work with, by node and stage, and what could not be found out."""
    found: dict[Node, dict[str, Mapping[str, Any]]] = {}
    unknown = []
    for node in tree:
        found[node] = {}
        for member in node.stage.family():
            try:
                seen = member.identity()
            except Exception as error:
                unknown.append(
                    f"{node.system}: what {member.name} works with could not be found out: {error_text(error)}"
                )
                continue
            if seen:
                found[node][member.name] = dict(seen)
    return found, unknown


def _per_query(values: Mapping[str, Sequence[float]], asked: Asked) -> dict[str, dict[str, float]]:
    return {
        name: {query: value for query, value in zip(asked.judged, numbers, strict=True) if not math.isnan(value)}
        for name, numbers in values.items()
    }


def _sum(stages: Sequence[StageFigures]) -> float | None:
    """What the stages cost together; None where that of one is not known."""
    costs = [stage.cost for stage in stages if stage.cost is not None]
    return sum(costs) if len(costs) == len(stages) else None


def _price_warnings(
    tallies: Tallies, figures: Mapping[Node, StageFigures], prices: Mapping[str, float]
) -> Iterator[str]:
    """Prices without usage, and usage without a price."""
    units = sorted({unit for tally in tallies.values() for unit in tally.units})
    for price in prices:
        if price not in units:
            yield f"the price of {price} matches no usage; there was {', '.join(units) or 'none'}"
    for stage in dict.fromkeys(one.stage for one in figures.values() if prices and one.cost is None):
        yield f"{stage} has usage and no price, so what it cost is not known; a price of 0 says that it is free"


def _title(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _versions(pipelines: Iterable[Pipeline]) -> dict[str, str]:
    """Of Python, and of the packages that ran, measured and compared."""
    versions: dict[str, str] = {}
    for pipeline in pipelines:
        versions |= versions_of(pipeline)
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _close(pipeline: Pipeline) -> None:
    """Close it; if that fails, all has been measured all the same."""
    with unclosed_told():
        pipeline.close()
