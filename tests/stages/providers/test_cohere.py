"""The stage `cohere` and its service."""

from __future__ import annotations

import asyncio

import cohere
import pytest

from milvus_pipeline import ConfigError
from milvus_stages import Cohere
from support.hosted import HIT_TEXTS, QUERY, rerank, stage_for
from support.standins import changed


@pytest.mark.parametrize("wrong", [{"priority": 1000}, {"priority": -1}, {"max_tokens_per_doc": 0}, {"model": ""}])
def test_options_beyond_the_services_range_are_refused_here(wrong):
    """Nothing that the service is known to refuse can be configured."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Cohere(**wrong)


def test_tokens_are_billed_with_the_newest_models(serve, way):
    """All figures among the billed units are counted."""
    server = serve("cohere")
    billed = {"input_tokens": 812.0, "output_tokens": 0, "images": 3, "search_units": None}
    server.always(changed(lambda body, request: {**body, "meta": {"billed_units": billed}}))
    assert rerank(stage_for(server), way).usage == {"requests": 1, "input_tokens": 812.0, "output_tokens": 0}


def test_the_official_sdk_gives_the_same(serve, way):
    """Cohere's own client finds the same order and the same scores."""
    server = serve("cohere")
    arguments = {"model": "rerank-v4.0-fast", "query": QUERY, "documents": list(HIT_TEXTS), "top_n": 4}

    async def official():
        async with cohere.AsyncClientV2(api_key=server.key, base_url=server.url) as client:
            return await client.rerank(**arguments)

    if way == "async":
        theirs = asyncio.run(official())
    else:
        with cohere.ClientV2(api_key=server.key, base_url=server.url) as client:
            theirs = client.rerank(**arguments)
    ours = rerank(stage_for(server, top_k=4), way)
    assert [(item.index, item.relevance_score) for item in theirs.results] == ours.ranked
    assert theirs.meta.billed_units.search_units == ours.usage["search_units"]
    assert server.requests[0].body == server.requests[1].body
