"""The official SDKs of Cohere and Voyage run against the stand-ins: each side takes what the other sends."""

import asyncio

import cohere
import httpx
import pytest
import voyageai
from cohere.errors import BadRequestError, ServiceUnavailableError, TooManyRequestsError, UnauthorizedError

from support.standins import StandIn, dripping, errors, ranking, rate_limits, variants

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


@pytest.mark.parametrize("provider", CLIENTS)
@pytest.mark.parametrize("limit", [None, 1, 2])
def test_the_sdk_ranks_as_the_stand_in_does(provider, limit, asynchronous):
    """Indices and scores come through unchanged, and nothing that the SDK sends is refused."""
    with StandIn(provider) as server:
        found = CLIENTS[provider](server, limit=limit, asynchronous=asynchronous)
    assert found == ranking(QUERY, TEXTS, limit)
    (request,) = server.requests
    assert (request.refused, request.key) == (None, server.key)


def test_what_each_sdk_is_known_to_send_arrives():
    """Cohere's headers and its null for None; Voyage's null and its truncation, always."""
    with StandIn("cohere") as server:
        cohere_pairs(server, client_name="a-project")
    (request,) = server.requests
    assert request.headers["x-client-name"] == "a-project"
    assert any(name.startswith("x-fern-") for name in request.headers)
    assert request.body["top_n"] is None
    with StandIn("voyage") as server:
        voyage_pairs(server)
    (request,) = server.requests
    assert request.body["top_k"] is None
    assert request.body["truncation"] is True


def test_a_wrong_key_is_each_sdks_authentication_error(asynchronous):
    """The services answer 401 in the shape that the SDK knows."""
    with StandIn("cohere") as server, pytest.raises(UnauthorizedError):
        cohere_pairs(server, key="another", asynchronous=asynchronous)
    with StandIn("voyage") as server, pytest.raises(voyageai.error.AuthenticationError):
        voyage_pairs(server, key="another", asynchronous=asynchronous)


def test_voyage_refuses_a_batch_for_one_empty_string(asynchronous):
    """One blank text is enough; the SDK sends it all the same."""
    with StandIn("voyage") as server, pytest.raises(voyageai.error.InvalidRequestError, match="empty string"):
        voyage_pairs(server, texts=["a", "", "b"], asynchronous=asynchronous)
    assert server.requests[0].refused.startswith("400: documents")


def test_cohere_refuses_an_empty_list():
    """The SDK does not look at it."""
    with StandIn("cohere") as server, pytest.raises(BadRequestError):
        cohere_pairs(server, texts=[])


def test_coheres_sdk_tries_again_after_two_503(asynchronous):
    """The script's replies come in order, then the normal one."""
    with StandIn("cohere") as server:
        server.script(*[server.error(503).but(headers=AGAIN)] * 2)
        assert cohere_pairs(server, asynchronous=asynchronous) == ranking(QUERY, TEXTS)
    assert len(server.requests) == 3


def test_coheres_sdk_gives_up_after_three_503():
    """What `always` says holds for every request."""
    with StandIn("cohere") as server:
        server.always(server.error(503).but(headers=AGAIN))
        with pytest.raises(ServiceUnavailableError):
            cohere_pairs(server)
    assert len(server.requests) == 3


def test_a_rate_limit_is_each_sdks_own_error(asynchronous):
    """Status and body are those that the SDK looks for."""
    with StandIn("cohere") as server, pytest.raises(TooManyRequestsError):
        server.always(rate_limits("cohere")["no_hint"])
        cohere_pairs(server, asynchronous=asynchronous, max_retries=0)
    with StandIn("voyage") as server, pytest.raises(voyageai.error.RateLimitError, match="rate limit reached"):
        server.always(rate_limits("voyage")["no_hint"])
        voyage_pairs(server, asynchronous=asynchronous)


@pytest.mark.parametrize("name", ["400_unknown_argument", "400_too_many_tokens"])
def test_voyages_errors_keep_their_text_in_its_sdk(name):
    """The text under `detail` is the SDK's message."""
    reply = errors("voyage")[name]
    with StandIn("voyage") as server:
        server.script(reply)
        with pytest.raises(voyageai.error.InvalidRequestError) as caught:
            voyage_pairs(server)
    assert reply.body["detail"] in str(caught.value)


@pytest.mark.parametrize("provider", CLIENTS)
def test_a_dripping_reply_is_whole(provider):
    """A body in twenty pieces is the same body."""
    with StandIn(provider) as server:
        server.script(dripping(0.002))
        assert CLIENTS[provider](server) == ranking(QUERY, TEXTS)


@pytest.mark.parametrize("provider", CLIENTS)
@pytest.mark.parametrize("name", ["tied", "unknown_members", "negative_scores"])
def test_the_sdk_reads_an_unusual_reply(provider, name):
    """What the catalogue calls right is right to the official client, too."""
    with StandIn(provider) as server:
        server.script(variants(provider)[name])
        assert {index for index, _ in CLIENTS[provider](server)} == {0, 1, 2}
