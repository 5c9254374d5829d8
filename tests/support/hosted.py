"""What the tests of the hosted rerankers share: a stage for each stand-in, and one way to ask it, blocking or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from milvus_pipeline import Hit, Query, SearchResult
from milvus_pipeline.plugin import Context, Deadline, registry
from milvus_stages.hosted import HostedReranker
from support.standins import PROVIDERS, StandIn

STAGES: dict[str, type[HostedReranker]] = {
    name: registry.get(provider.stage or name) for name, provider in PROVIDERS.items()
}
"""The stage for each stand-in."""

KEY = "SERVICE_KEY"
"""The variable of the key for a service without a usual one."""

QUERY = "where is the red plum?"
TEXTS = (
    "the blue sky",
    "a green pear and a red plum",
    "plum jam, where the red plum is",
    "Pflaumen 梅 \N{GRAPES} ровно",
    "a red apple",
    "where the sky is",
    "the blue sky",
)


class Serve:
    """Starts stand-ins, whose keys lie in the environment under the names that their users know."""

    def __init__(self, ending: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ending = ending
        self._monkeypatch = monkeypatch

    def __call__(self, provider: str, **settings: Any) -> StandIn:
        server = self._ending.enter_context(StandIn(provider, **settings))
        for variable in STAGES[provider].key_names or (KEY,):
            self._monkeypatch.setenv(variable, server.key)
        return server


def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """What a fixture gives to a test that starts stand-ins; they end with it."""
    with ExitStack() as ending:
        yield Serve(ending, monkeypatch)


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


def ask(stage: HostedReranker, way: str = "sync", query: str = QUERY, texts: Sequence[str] = TEXTS) -> Answer:
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
