"""The official SDKs of Cohere and Voyage run against the stand-ins: each side takes what the other sends."""

import asyncio

import cohere
import httpx
import pytest
import voyageai
from cohere.errors import TooManyRequestsError, UnauthorizedError

from support.standins import StandIn, rate_limits, variants

QUERY = "who cooked the red plum?"
TEXTS = ["It rained.", "Ann cooked the plum.", "A red plum"]
AGAIN = {"retry-after-ms": "1"}


def cohere_pairs(server, *, key=None, limit=None, texts=TEXTS, asynchronous=False, **options):
    """Index and score of each result that Cohere's SDK gives."""
    arguments = {"model": "rerank-v4.0-fast", "query": QUERY, "documents": texts, "top_n": limit}
    settings = {"api_key": key or server.key, "base_url": server.url, "timeout": 20, **options}

    async def call():
        async with httpx.AsyncClient(timeout=20) as transport:
            return await cohere.AsyncClientV2(**settings, httpx_client=transport).rerank(**arguments)

    if asynchronous:
        reply = asyncio.run(call())
    else:
        with httpx.Client(timeout=20) as transport:
            reply = cohere.ClientV2(**settings, httpx_client=transport).rerank(**arguments)
    return [(item.index, item.relevance_score) for item in reply.results]


def voyage_pairs(server, *, key=None, limit=None, texts=TEXTS, asynchronous=False, **options):
    """Index and score of each result that Voyage's SDK gives."""
    settings = {"api_key": key or server.key, "base_url": f"{server.url}/v1", "timeout": 20, **options}
    arguments = {"query": QUERY, "documents": texts, "model": "rerank-2.5", "top_k": limit}
    if asynchronous:
        reply = asyncio.run(voyageai.AsyncClient(**settings).rerank(**arguments))
    else:
        reply = voyageai.Client(**settings).rerank(**arguments)
    assert [item.document for item in reply.results] == [texts[item.index] for item in reply.results]
    return [(item.index, item.relevance_score) for item in reply.results]


CLIENTS = {"cohere": cohere_pairs, "voyage": voyage_pairs}


@pytest.fixture(params=["sync", "async"])
def asynchronous(request):
    """Whether the SDK's asynchronous client runs."""
    return request.param == "async"


def test_a_wrong_key_is_each_sdks_authentication_error(asynchronous):
    """The services answer 401 in the shape that the SDK knows."""
    with StandIn("cohere") as server, pytest.raises(UnauthorizedError):
        cohere_pairs(server, key="another", asynchronous=asynchronous)
    with StandIn("voyage") as server, pytest.raises(voyageai.error.AuthenticationError):
        voyage_pairs(server, key="another", asynchronous=asynchronous)


def test_a_rate_limit_is_each_sdks_own_error(asynchronous):
    """Status and body are those that the SDK looks for."""
    with StandIn("cohere") as server, pytest.raises(TooManyRequestsError):
        server.always(rate_limits("cohere")["no_hint"])
        cohere_pairs(server, asynchronous=asynchronous, max_retries=0)
    with StandIn("voyage") as server, pytest.raises(voyageai.error.RateLimitError, match="rate limit reached"):
        server.always(rate_limits("voyage")["no_hint"])
        voyage_pairs(server, asynchronous=asynchronous)


@pytest.mark.parametrize("provider", CLIENTS)
@pytest.mark.parametrize("name", ["tied", "unknown_members", "negative_scores"])
def test_the_sdk_reads_an_unusual_reply(provider, name):
    """What the catalogue calls right is right to the official client, too."""
    with StandIn(provider) as server:
        server.script(variants(provider)[name])
        assert {index for index, _ in CLIENTS[provider](server)} == {0, 1, 2}
