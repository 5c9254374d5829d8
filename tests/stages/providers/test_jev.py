"""The stage `jev` and its service."""

from __future__ import annotations

import pytest

from support.hosted import QUERY, rerank, stage_for
from support.standins import changed, ranking

MANY = [f"red plum {number}" for number in range(31)]


def test_the_tokens_of_a_request_are_bounded(serve, way):
    """Long documents are spread over requests that the service takes."""
    server = serve("jev")
    texts = [f"{number} " + "red plum " * 4_000 for number in range(8)]
    answer = rerank(stage_for(server), way, texts=texts)
    assert answer.error is None
    assert [len(request.body["questions"]) for request in server.requests] == [4, 4]
    assert all(request.refused is None for request in server.requests)


def test_an_overflow_is_halved(serve, way):
    """If the estimate was too low, the service's refusal leads to halves until they fit."""
    server = serve("jev", max_tokens=120)
    answer = rerank(stage_for(server), way, texts=MANY[:12])
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
    assert set(rerank(stage_for(server), way).usage) == {"requests", "input_tokens", "output_tokens"}
    assert rerank(stage_for(server), way, texts=MANY).usage["output_tokens"] == len(MANY)


@pytest.mark.parametrize("name", ["d7", "d00", "d-1", "d0 ", "D0", "0", "document", "d\N{SUPERSCRIPT TWO}", "d"])
def test_an_answer_to_no_question_is_refused(serve, way, name):
    """Names are those that were asked by, to the letter."""
    server = serve("jev")
    server.always(changed(lambda body, _: {**body, "answers": {**_without_first(body), name: body["answers"]["d0"]}}))
    error = rerank(stage_for(server), way).error
    assert "answered wrongly" in str(error)


def _without_first(body):
    return {name: answer for name, answer in body["answers"].items() if name != "d0"}
