"""What each stand-in refuses and how, and what it answers; over plain HTTP."""

import json
import math
import threading

import httpx
import pytest

from support.standins import (
    StandIn,
    ranking,
    relevance,
    tokens,
)
from support.standins.plain import QUERY, TEXTS, good, pairs, send

LIMITS = {
    "cohere": "top_n",
    "jina": "top_n",
    "vllm": "top_n",
    "infinity": "top_n",
    "voyage": "top_k",
    "mixedbread": "top_k",
}
LENIENT = ("vllm", "infinity")
REFUSED = {"jina": 422, "tei": 422, "infinity": 422, "mixedbread": 422, "jev": 422}


def test_scores_are_the_same_everywhere(server, provider):
    """Every service gives the relevance of query and text, best first."""
    reply = send(server, good(provider))
    assert reply.status_code == 200
    assert pairs(provider, reply.json()) == ranking(QUERY, TEXTS)
    assert server.requests[0].refused is None


def test_relevance_is_sensible():
    """Between 0 and 1, more words in common is more, and different texts do not tie."""
    scores = [relevance(QUERY, text) for text in TEXTS]
    assert all(0 < score < 1 for score in scores)
    assert sorted(range(4), key=lambda index: -scores[index])[:2] == [1, 2]
    assert len(set(scores)) == 4
    assert 0 < relevance("", "") < relevance("a", "a") < 1


def test_an_unknown_member_is_refused(server, provider):
    """Only vLLM and Infinity let it pass."""
    reply = send(server, good(provider, surprise=1))
    assert reply.status_code == (200 if provider in LENIENT else REFUSED.get(provider, 400))
    assert ("surprise" in (server.requests[0].refused or "")) == (provider not in LENIENT)


def test_each_member_that_is_needed_is_missed(server, provider):
    """A body without it is refused (the model is optional for three, and Mixedbread has a default)."""
    optional = {"vllm": {"model"}, "infinity": {"model"}}.get(provider, set())
    for member in set(good(provider)) - optional:
        body = good(provider)
        del body[member]
        assert send(server, body).status_code == REFUSED.get(provider, 400), member


@pytest.mark.parametrize(
    ("provider_name", "status", "body"),
    [
        ("cohere", 401, {"id": "0e5b1c9a-error", "message": "invalid api key"}),
        ("voyage", 401, {"detail": "Provided API key is invalid."}),
        ("jina", 401, {"detail": "invalid api key", "code": "AUTH_INVALID_API_KEY", "request_id": "request-000001"}),
        ("tei", 401, None),
        ("vllm", 401, {"error": "Unauthorized"}),
        ("infinity", 401, {"detail": "Unauthorized"}),
        ("jev", 401, {"detail": {"error_type": "authentication_error", "message": "invalid api key"}}),
    ],
)
def test_a_wrong_key_is_refused_in_each_ones_words(provider_name, status, body):
    """Status and body differ from service to service; TEI's is empty."""
    with StandIn(provider_name, locked=True) as server:
        reply = send(server, good(provider_name), key="another")
    assert reply.status_code == status
    assert (reply.json() if reply.content else None) == body


def test_a_missing_key_is_refused(server, provider):
    """With 401, but for Jev's 403."""
    assert send(server, good(provider), headers={}).status_code == (403 if provider == "jev" else 401)


def test_jina_tells_three_faults_of_a_key_apart():
    """Missing, wrong, and not a bearer key."""
    with StandIn("jina") as server:
        headers = [{}, {"authorization": "Bearer x"}, {"authorization": f"Token {server.key}"}]
        codes = [send(server, good("jina"), headers=each).json()["code"] for each in headers]
    assert codes == ["AUTH_MISSING_API_KEY", "AUTH_INVALID_API_KEY", "AUTH_INVALID_FORMAT"]


@pytest.mark.parametrize("name", ["tei", "vllm", "infinity"])
def test_a_server_of_ones_own_needs_no_key(name):
    """Unless it was started with one."""
    with StandIn(name) as server:
        assert send(server, good(name), headers={}).status_code == 200


def test_path_method_and_content_type_are_checked(server, provider):
    """Another path, a GET, a form: each is refused before the body is looked at."""
    url, json_type = server.url + server.provider.paths[0], {"content-type": "application/json"}
    assert send(server, good(provider), path="/v9/rerank").status_code == 404
    with httpx.Client(headers={"authorization": f"Bearer {server.key}"}) as client:
        assert client.get(url).status_code == 405
        plain = client.post(url, content=json.dumps(good(provider)), headers={"content-type": "text/plain"})
        assert plain.status_code in (400, 415, 422)
        for raw in (b"{", b"[]", b'{"query": NaN}', b"\xff"):
            assert client.post(url, content=raw, headers=json_type).status_code in (400, 422)


@pytest.mark.parametrize(("provider_name", "member"), LIMITS.items())
def test_the_limit_is_a_number_from_one_to_the_number_of_documents(provider_name, member):
    """Infinity and vLLM take more than there are, and vLLM takes 0 for all; nobody takes text or true."""
    with StandIn(provider_name) as server:
        statuses = {
            limit: send(server, good(provider_name, **{member: limit})).status_code for limit in (1, 4, 5, 0, -1, "2")
        }
        statuses["true"] = send(server, good(provider_name, **{member: True})).status_code
        count = len(pairs(provider_name, send(server, good(provider_name, **{member: 2})).json()))
    no = REFUSED.get(provider_name, 400)
    more, zero = (200 if provider_name in LENIENT else no), (200 if provider_name == "vllm" else no)
    assert statuses == {1: 200, 4: 200, 5: more, 0: zero, -1: no, "2": no, "true": no}
    assert count == 2


def test_documents_are_strings_and_at_least_one(server, provider):
    """An empty list is refused, and anything but strings (Jina accepts objects with a text; vLLM a single string)."""
    member = "questions" if provider == "jev" else server.provider.documents_key
    empty, numbers = ({}, {"d0": 1}) if provider == "jev" else ([], [1, 2])
    assert send(server, {**good(provider), member: empty}).status_code in (400, 422)
    assert send(server, {**good(provider), member: numbers}).status_code in (400, 422)


@pytest.mark.parametrize("name", ["cohere", "voyage", "infinity", "mixedbread"])
def test_the_number_of_documents_is_limited(name):
    """The limit is a setting, so that a test need not send thousands."""
    with StandIn(name, max_documents=3) as server:
        assert send(server, good(name, texts=["a", "b", "c"])).status_code == 200
        assert send(server, good(name)).status_code == REFUSED.get(name, 400)


def test_voyage_counts_the_tokens_of_a_request():
    """The query's once for each document; what is cut does not count."""
    query, texts = "q" * 40, ["d" * 400] * 3
    with StandIn("voyage", max_total_tokens=330) as server:
        assert send(server, good("voyage", query, texts)).json()["usage"] == {"total_tokens": 3 * 10 + 3 * 100}
    with StandIn("voyage", max_total_tokens=329) as server:
        assert "330 tokens" in send(server, good("voyage", query, texts)).json()["detail"]
    with StandIn("voyage", max_total_tokens=329, max_pair_tokens=100) as server:
        assert send(server, good("voyage", query, texts)).json()["usage"] == {"total_tokens": 3 * 10 + 3 * 90}
        assert send(server, good("voyage", query, texts, truncation=False)).status_code == 400
    assert tokens("d" * 401) == 101


def test_voyage_takes_blanks_but_no_empty_text():
    """A text of blanks is scored."""
    with StandIn("voyage") as server:
        assert send(server, good("voyage", texts=["a", " "])).status_code == 200
        assert send(server, good("voyage", texts=["a", ""])).status_code == 400
        assert send(server, good("voyage", top_n=1)).status_code == 400


def test_cohere_counts_search_units():
    """One for every hundred documents begun."""
    with StandIn("cohere") as server:
        units = [send(server, good("cohere", texts=["a"] * count)).json()["meta"] for count in (1, 100, 101)]
    assert [meta["billed_units"]["search_units"] for meta in units] == [1, 1, 2]


def test_jina_wants_the_echo_off():
    """Its default would send every text back."""
    with StandIn("jina") as server:
        body = good("jina")
        del body["return_documents"]
        assert send(server, body).status_code == 422
    with StandIn("jina", no_echo=False) as server:
        assert send(server, body).json()["results"][0]["document"] == {"text": "one red plum"}


def test_jinas_v3_scores_from_minus_one_to_one():
    """If wanted, each score depends on the other documents."""
    with StandIn("jina") as server:
        found = pairs("jina", send(server, good("jina", model="jina-reranker-v3.5")).json())
    assert found == [(index, 2 * score - 1) for index, score in ranking(QUERY, TEXTS)]
    with StandIn("jina", listwise=True) as server:
        whole = dict(pairs("jina", send(server, good("jina", model="jina-reranker-v3")).json()))
        part = dict(pairs("jina", send(server, good("jina", texts=TEXTS[:2], model="jina-reranker-v3")).json()))
    assert whole[1] != part[1]


def test_tei_limits_texts_and_bytes():
    """Each in its own words: 422 Validation, 413 without JSON, 400 Empty."""
    with StandIn("tei", max_texts=2, max_bytes=200) as server:
        refused = send(server, good("tei"))
        assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
        assert send(server, good("tei", texts=["a" * 200])).status_code == 413
        assert send(server, good("tei", texts=[])).json()["error_type"] == "Empty"
        assert send(server, good("tei", texts=["a", ""])).status_code == 200
        assert send(server, good("tei", query="", texts=["a", ""])).status_code == 400


def test_tei_has_a_slot_for_each_text():
    """With four, a request of two texts leaves two: one of three texts is refused until the first has gone."""
    statuses = {}

    def call(count):
        statuses[count] = send(server, good("tei", texts=TEXTS[:count])).status_code

    with StandIn("tei", slots=4) as server:
        server.hold()
        callers = [threading.Thread(target=call, args=(count,)) for count in (2, 3)]
        for started, caller in enumerate(callers, 1):
            caller.start()
            server.wait_for(started)
        server.release()
        for caller in callers:
            caller.join(20)
        assert statuses == {2: 200, 3: 429}
        assert send(server, good("tei")).status_code == 200
        assert send(server, good("tei", texts=[*TEXTS, "e"])).json()["error_type"] == "Overloaded"


def test_tei_puts_equal_scores_in_falling_order_of_index():
    """The array is bare, and the figures are in the headers."""
    with StandIn("tei") as server:
        reply = send(server, good("tei", texts=["x", "red plum", "x", "x"]))
        raw = send(server, good("tei", raw_scores=True)).json()
    assert [index for index, _ in pairs("tei", reply.json())] == [1, 3, 2, 0]
    assert reply.headers["x-compute-tokens"] == str(4 * 2 + 1 + 2 + 1 + 1)
    assert 1 / (1 + math.exp(-raw[0]["score"])) == pytest.approx(relevance(QUERY, TEXTS[1]))


def test_vllm_refuses_an_overflow_unless_it_may_cut():
    """Without `truncate_prompt_tokens` the whole request fails."""
    with StandIn("vllm", max_tokens=10) as server:
        body = good("vllm", texts=["a" * 100])
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            assert send(server, body, path=path).json()["error"]["type"] == "BadRequestError"
            assert send(server, body | {"truncate_prompt_tokens": -1}, path=path).status_code == 200


def test_infinity_limits_the_characters_and_repeats_the_text_in_its_error():
    """FastAPI's 422 brings the document back."""
    with StandIn("infinity", max_characters=10, prefix="/v1") as server:
        reply = send(server, good("infinity", texts=["a" * 11]))
    assert reply.status_code == 422
    assert "a" * 11 in reply.text
    assert server.requests[0].path == "/v1/rerank"


def test_jev_reads_a_question_as_its_model_would():
    """The document is in the question, or in the state under the name in the question; anything else is refused."""
    question = {"type": "noul", "instructions": "Is document d1 relevant?"}
    body = {
        "model": "m",
        "state": {"query": QUERY, "documents": {"d1": TEXTS[1], "d10": "x"}},
        "questions": {"a": question},
    }
    with StandIn("jev") as server:
        assert send(server, body).json()["answers"]["a"]["noul"] == relevance(QUERY, TEXTS[1])
        body["questions"]["a"] = {"type": "noul", "instructions": "Is it relevant?"}
        assert send(server, body).status_code == 422
        body["questions"]["a"] = {"type": "choice", "instructions": "Is document d1 relevant?"}
        assert send(server, body).json()["detail"]["error_type"] == "api_usage_error"


def test_jev_says_that_a_request_has_too_many_tokens():
    """Without a message; half of the documents pass."""
    with StandIn("jev", max_tokens=300) as server:
        reply = send(server, good("jev", texts=["a" * 400] * 4))
        assert (reply.status_code, reply.json()) == (400, {"detail": {"error_type": "max_tokens_exceeded"}})
        assert send(server, good("jev", texts=["a" * 400] * 2)).status_code == 200
