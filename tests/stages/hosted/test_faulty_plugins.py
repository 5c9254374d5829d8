"""Plugins on the hosted base that are wrong in ways that are easily written."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

import pytest

from milvus_pipeline import ServiceError, StageError
from milvus_pipeline.plugin import RerankJob
from milvus_stages.hosted import BadReply, HostedReranker, Limits, Reply
from support import standins
from support.hosted import QUERY, TEXTS, batch, both_ways, keyed, scored_by
from support.standins import StandIn

JOB = RerankJob(QUERY, TEXTS)
NO_JSON = {"nan": float("nan"), "date": datetime.date(2026, 11, 23), "set": {1, 2}}


class Trusting(HostedReranker):
    """A plugin that trusts what comes."""

    type = "trusting"
    path = "/v2/rerank"
    fault: str = ""

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """As Cohere's, or with what does not belong there."""
        body = {"model": "rerank-v3.5", "query": query, "documents": texts, "top_n": top_n}
        if self.fault == "payload":
            raise LookupError("no such shelf")
        if self.fault == "exit":
            raise SystemExit("no such plugin")
        if self.fault == "echo":
            raise LookupError(f"cannot shelve {texts[0]}")
        return body | {"novelty": NO_JSON[self.fault]} if self.fault in NO_JSON else body

    def limits(self) -> Limits:
        """None, or one that makes no sense."""
        return Limits(documents=-1) if self.fault == "limits" else Limits()

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """Fails in some way that repeats the reply."""
        text = data["results"][0]["document"]
        if self.fault == "key":
            return data[text]
        if self.fault == "value":
            raise ValueError(f"cannot read {text}")
        if self.fault == "type":
            return Reply(text)
        if self.fault == "bad":
            raise BadReply("there is no such member")
        if self.fault == "figures":
            return Reply(
                [(0, 0.5)], {"requests": 7, "sieves": 2, "no": None, "nor": "3", "nan": float("nan")}, ["a", 3, ""]
            )
        return None


@both_ways
@pytest.mark.parametrize("fault", ["key", "value", "type", "none", "bad"])
def test_a_plugins_parse_may_fail(way, fault):
    """Whatever the exception, the query fails with an error that names the endpoint without repeating the reply."""
    text = "the text of a document"
    with StandIn("cohere", locked=False) as server, keyed(server):
        server.always(standins.Reply(200, {"results": [{"index": 0, "document": text}]}))
        reranker = Trusting(base_url=server.url, fault=fault)
        outcome = scored_by(way, reranker, server, [JOB])
    error: BaseException | None = outcome.error()
    assert isinstance(error, ServiceError)
    assert "trusting: POST " in str(error)
    assert "answered wrongly" in str(error)
    while error is not None:
        assert text not in str(error)
        error = error.__cause__ or error.__context__


@both_ways
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        *((name, "trusting: the request cannot be written as JSON") for name in NO_JSON),
        ("payload", r"trusting: Trusting.payload failed \(LookupError\)"),
        ("echo", r"trusting: Trusting.payload failed \(LookupError\)"),
    ],
)
def test_a_plugins_fault_before_it_sends(way, fault, says):
    """With plugin and method, and the cause, unless that repeats a text; nothing is sent."""
    with StandIn("cohere", locked=False) as server, keyed(server):
        outcome = scored_by(way, Trusting(base_url=server.url, fault=fault), server, [JOB])
        assert server.requests == []
    error = outcome.failures[0]
    assert isinstance(error, StageError)
    assert re.search(says, str(error))
    assert (error.__cause__ is None) == (fault in (*NO_JSON, "echo"))
    assert not any(text in repr((error.__cause__, error.__context__)) for text in TEXTS)


@both_ways
def test_a_plugins_figures_are_taken_as_far_as_they_are_some(way):
    """What is not a figure, or is counted by the base, is left out; so is a warning that is not a string."""
    with StandIn("cohere", locked=False) as server, keyed(server):
        server.always(standins.Reply(200, {"results": [{"document": ""}]}))
        job = RerankJob(QUERY, TEXTS[:1])
        outcome = scored_by(way, Trusting(base_url=server.url, fault="figures"), server, [job])
    assert outcome.scores == [[0.5]]
    assert outcome.usage == {"requests": 1, "sieves": 2}
    assert outcome.warnings == ["a"]


def test_limits_that_make_no_sense_are_named():
    """Before anything is sent, and for the whole batch, as they are those of every query."""
    reranker = Trusting(base_url="http://127.0.0.1:9", fault="limits")
    reranker.open()
    with pytest.raises(StageError, match=r"trusting: Trusting\.limits: documents must be an integer of at least 1"):
        batch(reranker, [JOB])
    reranker.close()


@pytest.mark.parametrize("count", [1, 3])
def test_what_ends_the_process_ends_the_call(count):
    """It does so even in one of the threads of a batch, which would swallow it."""
    reranker = Trusting(base_url="http://127.0.0.1:9", fault="exit")
    reranker.open()
    with pytest.raises(SystemExit, match="no such plugin"):
        batch(reranker, [JOB] * count)
    reranker.close()
