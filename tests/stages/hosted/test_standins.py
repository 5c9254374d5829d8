"""The stand-ins refuse what their services refuse, repeat what their script says, and leave nothing behind."""

import json
import threading

import httpx
import pytest

from support.standins import StandIn, errors, ranking, variants, wrong
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


def test_a_missing_key_is_refused(server, provider):
    """With 401, but for Jev's 403."""
    assert send(server, good(provider), headers={}).status_code == (403 if provider == "jev" else 401)


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


def test_the_errors_that_repeat_what_was_sent_do(server, provider):
    """The key in one, the documents in the others."""
    server.script(*(errors(provider)[name] for name in ("401_repeating_the_key", "422_list_repeating_the_documents")))
    assert server.key in send(server, good(provider)).text
    assert TEXTS[1] in send(server, good(provider)).text


def test_wrong_replies_differ_from_a_right_one(server, provider):
    """Each comes with a status of success, and none reads as the ranking of what was sent."""
    for name, reply in wrong(provider).items():
        server.script(reply)
        answer = send(server, good(provider))
        assert answer.status_code in (200, 204), name
        assert answer.content != send(server, good(provider)).content, name
    server.script(wrong(provider)["fewer"])
    assert len(pairs(provider, send(server, good(provider)).json())) == 3


def test_a_change_leaves_a_refusal_as_it_is(server, provider):
    """A script makes no wrong request right."""
    server.script(variants(provider)["tied"])
    assert send(server, {}).status_code in (400, 422)


def test_the_end_leaves_nothing_behind():
    """With requests in flight, too: their clients see the connection end, the thread and the port are gone."""
    seen = []

    def call():
        try:
            send(server, good("tei"))
        except httpx.HTTPError as error:
            seen.append(error)

    threads = set(threading.enumerate())
    with StandIn("tei") as server:
        server.hold()
        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        server.wait_for(3)
    for caller in callers:
        caller.join(20)
    assert len(seen) == 3
    assert set(threading.enumerate()) == threads
    with pytest.raises(httpx.ConnectError):
        send(server, good("tei"))


def test_a_fault_of_the_script_comes_out_of_the_block():
    """The client only sees a closed connection; the test gets the exception."""

    def faulty(request, normal):
        return normal.but(body=normal.body["nothing"])

    with pytest.raises(KeyError, match="nothing"), StandIn("cohere") as server:
        server.script(faulty)
        with pytest.raises(httpx.RemoteProtocolError):
            send(server, good("cohere"))
