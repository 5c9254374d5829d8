"""The stage `cohere` and its service."""

from __future__ import annotations

import asyncio

import cohere
import pytest

from milvus_pipeline import ConfigError
from milvus_stages import Cohere
from support.hosted import QUERY, TEXTS, ask, stage_for
from support.standins import changed, errors
from support.standins.cohere import MODELS


def test_the_request(serve, way):
    """Path and body are those of version 2, without a word on echoes."""
    server = serve("cohere")
    ask(stage_for(server, top_k=3), way)
    (request,) = server.requests
    assert request.path == "/v2/rerank"
    assert request.body == {"model": "rerank-v4.0-fast", "query": QUERY, "documents": list(TEXTS), "top_n": 3}


def test_the_options(serve, way):
    """What is given is sent under the service's own names."""
    server = serve("cohere")
    options = {"model": "rerank-v3.5", "max_tokens_per_doc": 512, "priority": 0}
    ask(stage_for(server, **options), way)
    assert server.requests[0].refused is None
    assert server.requests[0].body == {"query": QUERY, "documents": list(TEXTS), "top_n": len(TEXTS), **options}


@pytest.mark.parametrize("wrong", [{"priority": 1000}, {"priority": -1}, {"max_tokens_per_doc": 0}, {"model": ""}])
def test_options_beyond_the_services_range_are_refused_here(wrong):
    """Nothing that the service is known to refuse can be configured."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Cohere(**wrong)


@pytest.mark.parametrize("model", MODELS)
def test_the_documented_models(serve, model):
    """Each documented model is accepted, and named in the docstring."""
    server = serve("cohere")
    assert ask(stage_for(server, model=model)).error is None
    assert f"``{model}``" in Cohere.__doc__


def test_tokens_are_billed_with_the_newest_models(serve, way):
    """All figures among the billed units are counted."""
    server = serve("cohere")
    billed = {"input_tokens": 812.0, "output_tokens": 0, "images": 3, "search_units": None}
    server.always(changed(lambda body, request: {**body, "meta": {"billed_units": billed}}))
    assert ask(stage_for(server), way).usage == {"requests": 1, "input_tokens": 812.0, "output_tokens": 0}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("401_wrong_key", "check the API key in COHERE_API_KEY or CO_API_KEY"),
        ("402_billing_limit", "billing limit reached"),
        ("404_unknown_model", "check model and base_url"),
        ("429_rate_limit", "set requests_per_minute"),
        ("498_denied_token", "deny list"),
    ],
)
def test_its_errors_have_text_id_and_next_step(serve, way, name, says):
    """The id is that of the trace, which the service's support asks for."""
    server = serve("cohere")
    server.always(errors("cohere")[name])
    error = ask(stage_for(server), way).error
    assert says in f"{error} {error.detail}"
    assert error.request_id.startswith("trace-")
    assert error.request_id in str(error)


def test_the_official_sdk_gives_the_same(serve, way):
    """Cohere's own client finds the same order and the same scores."""
    server = serve("cohere")
    arguments = {"model": "rerank-v4.0-fast", "query": QUERY, "documents": list(TEXTS), "top_n": 4}

    async def official():
        async with cohere.AsyncClientV2(api_key=server.key, base_url=server.url) as client:
            return await client.rerank(**arguments)

    if way == "async":
        theirs = asyncio.run(official())
    else:
        with cohere.ClientV2(api_key=server.key, base_url=server.url) as client:
            theirs = client.rerank(**arguments)
    ours = ask(stage_for(server, top_k=4), way)
    assert [(item.index, item.relevance_score) for item in theirs.results] == ours.ranked
    assert theirs.meta.billed_units.search_units == ours.usage["search_units"]
    assert server.requests[0].body == server.requests[1].body
