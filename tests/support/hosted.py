"""What the tests of hosted rerankers share: a stage for each stand-in, and calls of it, blocking and awaited."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from milvus_pipeline import Hit, Query, SearchResult, ServiceError
from milvus_pipeline.plugin import Context, Deadline, RerankJob, registry
from milvus_stages.hosted import HostedReranker
from support.standins import PROVIDERS, StandIn
from support.standins.messages import Request

STAGES: dict[str, type[HostedReranker]] = {
    name: registry.get(provider.stage or name) for name, provider in PROVIDERS.items()
}
"""The stage for each stand-in."""

KEY = "SERVICE_KEY"
"""The variable of the key for a service without a usual one."""

QUERY = "where is the red plum?"
HIT_TEXTS = (
    "the blue sky",
    "a green pear and a red plum",
    "plum jam, where the red plum is",
    "Pflaumen 梅 \N{GRAPES} ровно",
    "a red apple",
    "where the sky is",
    "the blue sky",
)


def stage_for(server: StandIn, **arguments: Any) -> HostedReranker:
    """The closed stage for a stand-in, without retries by default."""
    return STAGES[server.provider.name](**{"base_url": server.url, "retry": {"attempts": 1}, **arguments})


@dataclass(frozen=True)
class Answer:
    """What a stage made of one query."""

    ranked: list[tuple[int, float | None]]
    usage: dict[str, Any]
    warnings: list[str]
    details: dict[str, Any]
    error: Exception | None

    @property
    def order(self) -> list[int]:
        """The positions of the texts, best first."""
        return [index for index, _ in self.ranked]

    @property
    def scores(self) -> dict[int, float | None]:
        """The score of each text that is left."""
        return dict(self.ranked)


def rerank(stage: HostedReranker, way: str = "sync", query: str = QUERY, texts: Sequence[str] = HIT_TEXTS) -> Answer:
    """Open the stage, let it rerank the texts as hits of a search, and close it.

    Args:
        stage: closed.
        way: ``sync`` or ``async``.
        query: of the search.
        texts: of the hits, whose ids are their positions.
    """
    results = [SearchResult(Query(query), [Hit(index, text, 0.0) for index, text in enumerate(texts)])]
    context = Context(Deadline.after(60), 1)

    async def main() -> Sequence[SearchResult]:
        try:
            return await stage.aprocess(results, context)
        finally:
            await stage.aclose()

    stage.open()
    if way == "async":
        (result,) = asyncio.run(main())
    else:
        try:
            (result,) = stage.process(results, context)
        finally:
            stage.close()
    error = context.failures.get(0)
    ranked = [] if error else [(hit.id, hit.scores.get(stage.name)) for hit in result]
    return Answer(ranked, context.details[0].get("usage", {}), context.warnings[0], context.details[0], error)


# -- batches of an open stage ------------------------------------------------------------------------------------------

both_ways = pytest.mark.parametrize("way", ["sync", "async"])
each_provider = pytest.mark.parametrize("provider", PROVIDERS)

TEXTS = ("a red apple", "a green pear and a red plum", "the blue sky", "plum jam, where the red plum is")

QUICK = {"attempts": 3, "min_wait": 0.01, "max_wait": 0.02}
"""Retries that take no time to speak of."""

PATIENT = {"attempts": 3, "min_wait": 0.01, "max_wait": 60.0}
"""The same, which keep a wait that is asked for."""

KEY_VARIABLE = "STANDIN_API_KEY"


@dataclass
class Outcome:
    """What a batch ended in: scores and context."""

    scores: list[list[float | None]]
    context: Context

    @property
    def warnings(self) -> list[str]:
        """Of the first query."""
        return self.context.warnings[0]

    @property
    def details(self) -> dict[str, Any]:
        """Of the first query."""
        return self.context.details[0]

    @property
    def usage(self) -> dict[str, float]:
        """Of the first query; empty if it has none."""
        return self.details.get("usage", {})

    @property
    def failures(self) -> dict[int, Exception]:
        """By position."""
        return self.context.failures

    def error(self, position: int = 0) -> ServiceError:
        """The service's error that ended a query."""
        error = self.failures[position]
        assert isinstance(error, ServiceError), repr(error)
        return error


def stage(server: StandIn, **fields: Any) -> HostedReranker:
    """The stage for a stand-in, not open yet. Its key is taken from `KEY_VARIABLE`; see `keyed`."""
    fields = {"base_url": server.url, "retry": QUICK, **fields}
    if server.provider.needs_key or server.provider.locked:
        fields.setdefault("api_key_env", KEY_VARIABLE)
    return STAGES[server.provider.name](**fields)


@contextmanager
def keyed(server: StandIn) -> Iterator[None]:
    """Put the server's key into the environment."""
    before = os.environ.get(KEY_VARIABLE)
    os.environ[KEY_VARIABLE] = server.key
    try:
        yield
    finally:
        del os.environ[KEY_VARIABLE]
        if before is not None:
            os.environ[KEY_VARIABLE] = before


def scored(
    way: str, server: StandIn, jobs: Iterable[RerankJob], timeout: float | None = None, **fields: Any
) -> Outcome:
    """Open a stage for the stand-in, score the jobs in one batch, and close it again."""
    return scored_by(way, stage(server, **fields), server, jobs, timeout)


def scored_by(
    way: str, reranker: HostedReranker, server: StandIn, jobs: Iterable[RerankJob], timeout: float | None = None
) -> Outcome:
    """``scored`` with a stage that is not open."""
    jobs = list(jobs)
    with keyed(server):
        if way == "sync":
            reranker.open()
            try:
                return batch(reranker, jobs, timeout)
            finally:
                reranker.close()

        async def main() -> Outcome:
            await reranker.aopen()
            try:
                return await abatch(reranker, jobs, timeout)
            finally:
                await reranker.aclose()

        return asyncio.run(main())


@contextmanager
def opened(way: str, server: StandIn, **fields: Any) -> Iterator[Callable[..., Outcome]]:
    """Open a stage for all calls of a test, on one event loop if it is not blocking.

    Gives a function of the texts, the query, ``top_k`` and the timeout, as `ask` is.
    """
    reranker = stage(server, **fields)

    def job(texts: Sequence[str] = TEXTS, query: str = QUERY, top_k: int | None = None) -> list[RerankJob]:
        return [RerankJob(query, list(texts), top_k)]

    with keyed(server):
        if way == "sync":
            reranker.open()
            try:
                yield lambda *texts, timeout=None, **given: batch(reranker, job(*texts, **given), timeout)
            finally:
                reranker.close()
            return
        with asyncio.Runner() as runner:
            runner.run(reranker.aopen())
            try:
                yield lambda *texts, timeout=None, **given: runner.run(abatch(reranker, job(*texts, **given), timeout))
            finally:
                runner.run(reranker.aclose())


def scored_at_once(
    way: str, servers: Sequence[StandIn], jobs: Iterable[RerankJob], **fields: Any
) -> dict[str, Outcome]:
    """``scored`` by several providers at the same time, so that their waits overlap; by the provider's name."""
    jobs, names = list(jobs), [server.provider.name for server in servers]
    with ExitStack() as ending:
        rerankers = []
        for server in servers:
            rerankers.append(stage(server, **fields))
            with keyed(server):
                ending.enter_context(rerankers[-1])
        if way == "sync":
            pool = ending.enter_context(ThreadPoolExecutor(len(servers)))
            outcomes = list(pool.map(batch, rerankers, [jobs] * len(rerankers)))
        else:

            async def main() -> list[Outcome]:
                return await asyncio.gather(*(abatch(reranker, jobs) for reranker in rerankers))

            outcomes = asyncio.run(main())
    return dict(zip(names, outcomes, strict=True))


def batch(reranker: HostedReranker, jobs: Sequence[RerankJob], timeout: float | None = None) -> Outcome:
    """Score in an open stage, blocking."""
    context = Context(Deadline.after(timeout), len(jobs))
    return Outcome(reranker.score_batch(jobs, context), context)


async def abatch(reranker: HostedReranker, jobs: Sequence[RerankJob], timeout: float | None = None) -> Outcome:
    """Score in an open stage, on this event loop."""
    context = Context(Deadline.after(timeout), len(jobs))
    return Outcome(await reranker.ascore_batch(jobs, context), context)


def ask(
    way: str,
    server: StandIn,
    texts: Sequence[str] = TEXTS,
    *,
    query: str = QUERY,
    top_k: int | None = None,
    timeout: float | None = None,
    **fields: Any,
) -> Outcome:
    """``scored`` for one query."""
    return scored(way, server, [RerankJob(query, list(texts), top_k)], timeout, **fields)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def asked_of(request: Request) -> str:
    """The query of a request, wherever the service has it."""
    return request.body["state"]["query"] if "state" in request.body else request.body["query"]


def sent(server: StandIn) -> list[list[str]]:
    """The documents of each request, in the order of arrival; each request was one that the service takes."""
    requests = server.requests
    assert [request.refused for request in requests] == [None] * len(requests)
    return [request.body[server.provider.documents_key] for request in requests]


def order(scores: Sequence[float | None]) -> list[int]:
    """Positions, best first; those without a score are left out."""
    found = [(place, score) for place, score in enumerate(scores) if score is not None]
    return [place for place, score in sorted(found, key=lambda pair: -pair[1])]
