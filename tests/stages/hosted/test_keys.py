"""Keys, headers and addresses: their sources, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from milvus_pipeline import ConfigError, Pipeline, StageError
from milvus_stages import TEI, Cohere, Jev, Jina, Mixedbread, RerankAPI, Voyage
from milvus_stages.hosted.service import join_url
from support.fake_stages.basic import ListedSearch
from support.hosted import QUERY, QUICK, TEXTS
from support.standins import StandIn

NAMES = {
    Cohere: ("COHERE_API_KEY", "CO_API_KEY"),
    Voyage: ("VOYAGE_API_KEY",),
    Jina: ("JINA_API_KEY", "JINAAI_API_KEY"),
    Mixedbread: ("MXBAI_API_KEY",),
    Jev: ("TYPESAFE_API_KEY",),
    TEI: (),
    RerankAPI: (),
}
PRIVATE = "sk-live-Zq81hT0kLm42"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    """No key of the machine's own is seen."""
    for names in NAMES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


def sent_key(server, **fields):
    """The Authorization header of a request."""
    reranker = Cohere(base_url=server.url, retry=QUICK, **fields)
    reranker(QUERY, TEXTS)
    reranker.close()
    return server.requests[-1].headers.get("authorization")


def opened(reranker, way):
    """Open and close a stage, blocking or on an event loop."""

    async def main():
        await reranker.aopen()
        await reranker.aclose()

    if way == "async":
        asyncio.run(main())
    else:
        reranker.open()
        reranker.close()


both_ways = pytest.mark.parametrize("way", ["sync", "async"])


@both_ways
@pytest.mark.parametrize(("kind", "names"), NAMES.items())
def test_a_key_has_the_usual_names(kind, names, way, monkeypatch):
    """They are read in this order; without any of them the stage cannot be opened, and the message names them."""
    assert kind.key_names == names
    reranker = kind(base_url="http://127.0.0.1:9")
    if not names:
        opened(reranker, way)
        return
    with pytest.raises(StageError, match=f"the API key: the environment variable {' or '.join(names)} is not set"):
        opened(reranker, way)
    assert not reranker.is_open
    monkeypatch.setenv(names[-1], PRIVATE)
    opened(reranker, way)
    for name in names[:-1]:
        monkeypatch.setenv(name, "  ")  # as if it were not set
    opened(reranker, way)


def test_the_first_name_wins(monkeypatch):
    """The first variable that is set counts; blanks around a key are taken off."""
    with StandIn("cohere") as server:
        monkeypatch.setenv("CO_API_KEY", "another-key")
        monkeypatch.setenv("COHERE_API_KEY", f" {server.key}\n")
        assert sent_key(server) == f"Bearer {server.key}"
        monkeypatch.setenv("MY_KEY", server.key)
        monkeypatch.setenv("COHERE_API_KEY", "yet-another-key")
        assert sent_key(server, api_key_env="MY_KEY") == f"Bearer {server.key}"


@both_ways
@pytest.mark.parametrize(
    "value",
    [f"{PRIVATE}\nX-Forged: 1", f"{PRIVATE} {PRIVATE}", f"{PRIVATE}é", f"{PRIVATE}\x7f", f"\N{EM DASH}{PRIVATE}"],
)
def test_a_value_that_cannot_be_a_key_is_refused(way, value, monkeypatch):
    """When the stage opens, before anything is sent; neither the message nor what is behind it shows the value."""
    monkeypatch.setenv("COHERE_API_KEY", value)
    with StandIn("cohere") as server:
        reranker = Cohere(base_url=server.url)
        with pytest.raises(StageError, match="COHERE_API_KEY contains blanks, line breaks") as caught:
            opened(reranker, way)
        with pytest.raises(StageError) as again, Pipeline([ListedSearch(), reranker]):
            pass
        assert server.connections == 0
    for error in (caught.value, again.value):
        assert PRIVATE not in "".join(traceback.format_exception(error))


def test_a_blank_value_is_reported(monkeypatch):
    """An empty variable is reported differently from one that is not set, since it is most likely a mistake."""
    monkeypatch.setenv("MXBAI_API_KEY", " \n")
    with pytest.raises(
        StageError, match="environment variable MXBAI_API_KEY is not set or empty; set it before the stage opens"
    ):
        Mixedbread().open()


def test_a_key_in_place_of_a_name_is_refused_unseen():
    """`api_key_env` names a variable; the message does not repeat a wrong value."""
    for wrong in (PRIVATE, "sk-1", "two words", "1KEY", "KÉY", ""):
        with pytest.raises(ConfigError, match="api_key_env: must be the name of an environment variable") as caught:
            Cohere(api_key_env=wrong)
        assert PRIVATE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, PRIVATE) for name in ("Authorization", "x-api-key", "api_key", "X-Auth", "Cookie", "client-secret")),
        *((name, PRIVATE) for name in ("X-Amz-Security-Token", "PASSWORD", "X-Bearer", "Ocp-Apim-Subscription")),
        ("X-Trace", f"Bearer {PRIVATE}"),
    ],
)
def test_a_literal_secret_in_a_header_is_refused(name, value):
    """Whether its name or its value looks like one; it would be written to files and printed with the stage."""
    with pytest.raises(ConfigError, match=f"headers: {name}: looks like a secret; .* write {{env: NAME}}") as caught:
        Cohere(headers={name: value})
    assert PRIVATE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x y": "1"}, "a name must consist of letters, digits and dashes"),
        ({"x:": "1"}, "a name must consist of letters, digits and dashes"),
        ({"": "1"}, "the names must be non-empty strings"),
        ({"Content-Type": "text/plain"}, "Content-Type is written by the transport"),
        ({"host": "example.com"}, "host is written by the transport"),
        ({"x": "line\nbreak"}, "x: must be printable ASCII"),
        ({"x": "é"}, "x: must be printable ASCII"),
        ({"x": " 1"}, "x: must be printable ASCII"),
        ({"x": 1}, "x: must be printable ASCII"),
        ({"x": {"env": "NAME", "default": "1"}}, "x: must be printable ASCII without blanks around it, or {env: NAME}"),
        ({"x": {"env": PRIVATE}}, "must be the name of an environment variable"),
        ({"x": {}}, "x: must be printable ASCII without blanks around it, or {env: NAME}"),
    ],
)
def test_headers_are_checked(headers, message):
    """Names and values that HTTP cannot carry, or that the transport writes itself."""
    with pytest.raises(ConfigError) as caught:
        Cohere(headers=headers)
    assert message in str(caught.value)
    assert PRIVATE not in str(caught.value)


def test_headers_are_sent(monkeypatch):
    """Those of the configuration, and those of the environment; the key goes beside them."""
    monkeypatch.setenv("TENANT", " Team 7 ")
    with StandIn("cohere") as server:
        monkeypatch.setenv("COHERE_API_KEY", server.key)
        key = sent_key(server, headers={"X-Client-Name": "tests", "x-tenant": {"env": "TENANT"}, "User-Agent": "mine"})
        headers = server.requests[0].headers
    assert key == f"Bearer {server.key}"
    assert (headers["x-client-name"], headers["x-tenant"], headers["user-agent"]) == ("tests", "Team 7", "mine")
    assert headers["content-type"] == "application/json"


def test_a_header_may_stand_for_the_key(monkeypatch):
    """`Authorization` from the environment replaces the key, which need not be set then."""
    with StandIn("cohere") as server:
        monkeypatch.setenv("GATEWAY", f"Basic {server.key}")
        fields = {"headers": {"authorization": {"env": "GATEWAY"}}}
        server.always(server.error(401, f"no such key: {server.key}"))
        reranker = Cohere(base_url=server.url, retry=QUICK, **fields)
        with pytest.raises(StageError, match="answered 401") as caught:
            reranker(QUERY, TEXTS)
        assert server.key not in "".join(traceback.format_exception(caught.value))
        reranker.close()
        assert server.requests[0].headers["authorization"] == f"Basic {server.key}"
        monkeypatch.delenv("GATEWAY")
        with pytest.raises(
            StageError, match="cohere: the header authorization: the environment variable GATEWAY is not"
        ):
            reranker.open()


def test_what_is_shown_of_a_stage_holds_names_only(monkeypatch):
    """Also while it is open."""
    monkeypatch.setenv("MY_KEY", PRIVATE)
    reranker = Cohere(api_key_env="MY_KEY", headers={"x-api-key": {"env": "MY_KEY"}})
    reranker.open()
    pipeline = Pipeline([ListedSearch(), reranker])
    shown = [repr(reranker), str(reranker), repr(reranker.config()), pipeline.to_yaml(), repr(vars(reranker))]
    shown += [repr(reranker._sender), repr(vars(reranker._sender)["_transport"])]
    reranker.close()
    assert PRIVATE not in "".join(shown)
    assert "env: MY_KEY" in pipeline.to_yaml()
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "host:80", "http://", "http://:80", "http://host:port", "http://host:0", "http://h ost", "http://hóst",
     "http://host/?key=1", "http://host/#part", f"https://user:{PRIVATE}@host", f"https://{PRIVATE}@host", "", "http://[::1"],
)  # fmt: skip
def test_addresses_are_checked(url):
    """An invalid address is refused, and one that would put secrets or a query into every message."""
    with pytest.raises(ConfigError, match="base_url: must") as caught:
        Cohere(base_url=url)
    assert PRIVATE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("https://api.cohere.com", "/v2/rerank", "https://api.cohere.com/v2/rerank"),
        ("https://api.cohere.com/", "/v2/rerank", "https://api.cohere.com/v2/rerank"),
        ("https://api.cohere.com/v2", "/v2/rerank", "https://api.cohere.com/v2/rerank"),
        ("https://api.cohere.com/v2/rerank/", "/v2/rerank", "https://api.cohere.com/v2/rerank"),
        ("http://host:8000/v1", "/rerank", "http://host:8000/v1/rerank"),
        ("http://host:8000/v1/rerank", "/rerank", "http://host:8000/v1/rerank"),
        ("http://gate/cohere/v2", "/v2/rerank", "http://gate/cohere/v2/rerank"),
        ("http://gate/v20", "/v2/rerank", "http://gate/v20/v2/rerank"),
        ("http://rerank", "/rerank", "http://rerank/rerank"),
        ("http://v2", "/v2/rerank", "http://v2/v2/rerank"),
        ("http://[::1]:80", "rerank", "http://[::1]:80/rerank"),
    ],
)
def test_addresses_are_joined(base, path, expected):
    """The path goes behind the base, as far as the base does not end in it already."""
    assert join_url(base, path) == expected


def test_keys_of_atlas_go_to_atlas(monkeypatch):
    """A Voyage key of MongoDB Atlas is known by its beginning; an address that is given wins."""
    voyage = Voyage()
    assert voyage.address("al-123") == "https://ai.mongodb.com"
    assert voyage.address("pa-123") == voyage.address(None) == "https://api.voyageai.com"
    for key, host in (("al-12345678", "https://ai.mongodb.com"), ("pa-al-12345678", "https://api.voyageai.com")):
        monkeypatch.setenv("VOYAGE_API_KEY", key)
        voyage.open()
        assert voyage._sender._transport.request == f"POST {host}/v1/rerank"
        voyage.close()
    with StandIn("voyage") as server:
        monkeypatch.setenv("VOYAGE_API_KEY", "al-12345678")
        with pytest.raises(StageError, match="answered 401"):
            (elsewhere := Voyage(base_url=server.url))(QUERY, TEXTS)
        elsewhere.close()
        assert server.requests[0].key == "al-12345678"
