"""The stage `jev` and its service."""

from __future__ import annotations

import pytest

from milvus_stages import Jev
from support.hosted import QUERY, TEXTS, ask, stage_for
from support.standins import changed, errors, ranking

MANY = [f"red plum {number}" for number in range(31)]


def test_the_request(serve, way):
    """One question a document, which holds the document, and the query in the state they share."""
    server = serve("jev")
    ask(stage_for(server, top_k=1), way, texts=TEXTS[:2])
    (request,) = server.requests
    assert request.path == "/v1/systemone"
    task = "Is the document relevant to the query?"
    assert request.body == {
        "model": "jev-latest",
        "state": {"query": QUERY},
        "questions": {
            "d0": {"type": "noul", "instructions": {"task": task, "document": TEXTS[0]}},
            "d1": {"type": "noul", "instructions": {"task": task, "document": TEXTS[1]}},
        },
    }


def test_the_options(serve, way):
    """A version of the model, and a question of one's own."""
    server = serve("jev")
    ask(stage_for(server, model="jev-1.13.0", question="Does it say where?"), way)
    body = server.requests[0].body
    assert body["model"] == "jev-1.13.0"
    assert {question["instructions"]["task"] for question in body["questions"].values()} == {"Does it say where?"}


def test_more_than_30_documents_are_split(serve, way):
    """31 become two requests; answers do not depend on each other, so they are put together."""
    server = serve("jev")
    answer = ask(stage_for(server), way, texts=MANY)
    assert sorted(len(request.body["questions"]) for request in server.requests) == [15, 16]
    assert answer.order == [index for index, _ in ranking(QUERY, MANY)]
    server.clear()
    ask(stage_for(server, max_documents=100), way, texts=MANY)
    assert len(server.requests) == 1


def test_the_tokens_of_a_request_are_bounded(serve, way):
    """Long documents are spread over requests that the service takes."""
    server = serve("jev")
    texts = [f"{number} " + "red plum " * 4_000 for number in range(8)]
    answer = ask(stage_for(server), way, texts=texts)
    assert answer.error is None
    assert [len(request.body["questions"]) for request in server.requests] == [4, 4]
    assert all(request.refused is None for request in server.requests)


def test_an_overflow_is_halved(serve, way):
    """Where the estimate was too low, the service's refusal leads to halves until they fit."""
    server = serve("jev", max_tokens=120)
    answer = ask(stage_for(server), way, texts=MANY[:12])
    assert answer.error is None
    assert answer.order == [index for index, _ in ranking(QUERY, MANY[:12])]
    refused = [request for request in server.requests if request.refused]
    accepted = [len(request.body["questions"]) for request in server.requests if not request.refused]
    assert refused
    assert sum(accepted) == 12
    assert answer.usage["requests"] == len(server.requests)


def test_usage_has_the_services_words(serve, way):
    """Input and output tokens, added over the requests."""
    server = serve("jev")
    assert set(ask(stage_for(server), way).usage) == {"requests", "input_tokens", "output_tokens"}
    assert ask(stage_for(server), way, texts=MANY).usage["output_tokens"] == len(MANY)


@pytest.mark.parametrize("name", ["d7", "d00", "d-1", "d0 ", "D0", "0", "document", "d\N{SUPERSCRIPT TWO}", "d"])
def test_an_answer_to_no_question_is_refused(serve, way, name):
    """Names are those that were asked by, to the letter."""
    server = serve("jev")
    server.always(changed(lambda body, _: {**body, "answers": {**_without_first(body), name: body["answers"]["d0"]}}))
    error = ask(stage_for(server), way).error
    assert "answered wrongly" in str(error)


def _without_first(body):
    return {name: answer for name, answer in body["answers"].items() if name != "d0"}


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("400_unknown_model", "api_usage_error", "unknown model"),
        ("400_text", None, "too many options"),
        ("401_wrong_key", "authentication_error", "check the API key in TYPESAFE_API_KEY"),
        ("403_missing_key", "authentication_error", "check the API key in TYPESAFE_API_KEY"),
        ("422_validation", None, "body.questions: must have at least one entry"),
        ("529_overloaded", "overloaded_error", "overloaded"),
    ],
)
def test_its_errors_in_three_shapes(serve, way, name, code, says):
    """`detail` is an object, a text or a list; the id is in a header."""
    server = serve("jev")
    server.always(lambda request, normal: server.provider.stamped(errors("jev")[name], request))
    error = ask(stage_for(server), way).error
    assert error.code == code
    assert says in f"{error} {error.detail}"
    assert error.request_id == "request-000001"


def test_the_default_model_is_documented():
    """The name that moves, and that there are versions."""
    assert Jev().model == "jev-latest"
    assert "``jev-latest``" in Jev.__doc__
    assert "``jev-1.13.0``" in Jev.__doc__
