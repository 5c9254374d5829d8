"""Hosted rerankers in a pipeline and called alone: failures, deadlines, usage and dry runs."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from milvus_pipeline import (
    DeadlineError,
    Pipeline,
    QueryError,
    RerankResult,
    ServiceError,
    StageError,
    total_planned,
)
from milvus_stages.hosted.plan import estimated_tokens
from support.fake_stages.basic import ListedSearch, WordOverlap
from support.hosted import QUERY, STAGES, TEXTS, both_ways, keyed, stage
from support.standins import StandIn, late, ranking, relevance

HANGS = 30.0
MANY = tuple(f"plum number {number} is {'red' if number % 3 else 'blue'}" for number in range(75))


def ran(way, server, stages, queries, timeout=None, errors=True):
    """Run a batch through a list of documents and these stages, open and closed again."""
    pipeline = Pipeline([ListedSearch(documents=TEXTS), *stages] if stages[0].type != "listed_search" else stages)
    with keyed(server):
        if way == "sync":
            with pipeline:
                return pipeline.run_batch(queries, timeout=timeout, return_errors=errors)

        async def main():
            async with pipeline:
                return await pipeline.arun_batch(queries, timeout=timeout, return_errors=errors)

        return asyncio.run(main())


@both_ways
def test_a_failure_that_is_skipped_degrades(way):
    """The hits stay as they were; the report has the reason and what was paid."""
    with StandIn("cohere") as server:
        server.always(server.error(402, "no more money"))
        (result,) = ran(way, server, [stage(server, on_error="skip"), WordOverlap()], [QUERY])
    assert (result.status, result.error) == ("degraded", None)
    report = result.report("cohere")
    assert report.status == "skipped"
    assert "pipeline: stages[1] (cohere): cohere: POST" in report.reason
    assert "check the account's balance and billing" in report.reason
    assert report.usage == {"requests": 1}
    assert result.report("word_overlap").status == "ok"
    assert sorted(hit.id for hit in result) == [0, 1, 2, 3]


@both_ways
def test_a_failure_is_raised_with_its_cause(way):
    """The pipeline's error says where; its cause is the service's error."""
    with StandIn("jina") as server:
        server.always(server.error(500, "out of order", "INTERNAL_ERROR"))
        with pytest.raises(StageError, match=r"pipeline: stages\[1\] \(jina\): jina: POST .* answered 500") as caught:
            ran(way, server, [stage(server)], [QUERY], errors=False)
        assert len(server.requests) == 3
    cause = caught.value.__cause__
    assert isinstance(cause, ServiceError)
    assert (cause.status, cause.code, cause.attempts) == (500, "INTERNAL_ERROR", 3)


@both_ways
@pytest.mark.parametrize(
    ("concurrency", "expected"), [(8, ["ok", "ok", "failed", "ok", "failed"]), (1, ["ok", "ok", *["failed"] * 3])]
)
def test_what_was_answered_before_the_deadline_is_kept(way, concurrency, expected):
    """Of a batch some queries hang: they fail with the time that was given, the others keep their results."""
    began = time.monotonic()
    queries = [QUERY, "plum", "hang 1", "sky", "hang 2"]
    with StandIn("cohere") as server:
        hang = late(HANGS)
        server.always(lambda request, normal: hang(request, normal) if "hang" in request.body["query"] else normal)
        results = ran(way, server, [stage(server, max_concurrency=concurrency)], queries, timeout=2.0)
    assert time.monotonic() - began < HANGS - 10
    assert [result.status for result in results] == expected
    for query, result in zip(queries, results, strict=True):
        if result.status == "ok":
            assert [hit.id for hit in result] == [index for index, _ in ranking(query, TEXTS)]
        else:
            assert "2 s" in str(result.error)
            assert isinstance(result.error.__cause__, DeadlineError)
    assert results[2].usage == {"cohere": {"requests": 1}}


@both_ways
def test_a_stages_own_time_bounds_it(way):
    """The stage's `timeout` applies if the pipeline has none; with `skip` the hits keep their order."""
    began = time.monotonic()
    with StandIn("cohere") as server:
        server.always(late(HANGS))
        (result,) = ran(way, server, [stage(server, timeout=0.3, on_error="skip")], [QUERY])
    assert result.status == "degraded"
    assert [hit.id for hit in result] == [0, 1, 2, 3]
    assert time.monotonic() - began < HANGS - 10


@both_ways
def test_blank_documents_and_hits_without_text_are_last(way):
    """Each has its own warning; every other hit has its score."""
    documents = ("", TEXTS[0], None, TEXTS[1], "  ")
    with StandIn("voyage") as server:
        (result,) = ran(way, server, [ListedSearch(documents=documents), stage(server)], [QUERY])
        assert server.requests[0].body["documents"] == [TEXTS[0], TEXTS[1]]
    assert [hit.id for hit in result] == [3, 1, 0, 2, 4]
    assert [hit.scores.get("voyage") is None for hit in result] == [False, False, True, True, True]
    assert result.warnings == [
        "voyage: 2 of 4 documents are blank; ranked last, without a score",
        "voyage: 1 of 5 hits have no text; ranked last, without a score",
    ]
    assert result.status == "ok"


@pytest.mark.parametrize("provider", STAGES)
@pytest.mark.parametrize("fields", [{}, {"max_documents": 10}, {"top_k": 4, "max_documents": 40}])
def test_a_dry_run_foretells_what_is_sent(provider, fields):
    """Requests and documents, query by query, without a key and without a connection; tokens are what was planned."""
    documents = ("", *MANY, None, " ")
    with StandIn(provider, **({"max_texts": 64} if provider == "tei" else {})) as server:
        if provider == "jina":
            fields = {**fields, "model": "jina-reranker-v2-base-multilingual"}
        reranker = stage(server, **fields)
        pipeline = Pipeline([ListedSearch(documents=documents), reranker])
        planned = pipeline.dry_run().run_batch([QUERY, "plum"])
        assert (server.connections, reranker.is_open) == (0, False)
        results = ran("sync", server, list(pipeline.stages), [QUERY, "plum"])
        assert all(request.refused is None for request in server.requests)
        sent = len(server.requests)
    for one, other in zip(planned, results, strict=True):
        assert one.report(reranker.name).planned["requests"] == other.usage[reranker.name]["requests"]
        assert one.report(reranker.name).planned["documents"] == len(MANY)
        assert one.warnings == other.warnings
        assert all(reranker.name not in hit.scores for hit in one)
    assert total_planned(planned)[reranker.name]["requests"] == sent
    figures = planned[0].report(reranker.name).planned
    # The query is read with each document, but by a model that is shown it once a request.
    repeated = figures["requests"] if provider == "jev" else figures["documents"]
    tokens = sum(map(estimated_tokens, MANY)) + estimated_tokens(QUERY) * repeated
    if provider == "jev":  # within a tenth of what is written: the question goes with each document
        bodies = [
            json.dumps(request.body, separators=(",", ":"))
            for request in server.requests
            if request.body["state"]["query"] == QUERY
        ]
        assert figures["tokens"] == pytest.approx(sum(map(estimated_tokens, bodies)), rel=0.1)
    else:
        assert figures["tokens"] == tokens


def test_a_dry_run_reports_what_cannot_be_sent():
    """A listwise list that is too long fails in a dry run as in a run, with the same words."""
    with StandIn("jina") as server:
        pipeline = Pipeline([ListedSearch(documents=MANY), stage(server, max_documents=10)])
        (planned,) = pipeline.dry_run().run_batch([QUERY], return_errors=True)
        (result,) = ran("sync", server, list(pipeline.stages), [QUERY])
        assert server.requests == []
    assert str(planned.error) == str(result.error)
    assert "so 75 of them cannot be split into requests of 10" in str(result.error)


def test_a_call_on_its_own():
    """The first call opens the stage; `top_k` of the call overrides that of the stage."""
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, top_k=2)
        best = [RerankResult(TEXTS[index], score, index) for index, score in ranking(QUERY, TEXTS)]
        assert reranker(QUERY, TEXTS) == best[:2]
        assert reranker(QUERY, TEXTS, top_k=3) == best[:3]
        assert reranker(QUERY, TEXTS, 9) == best
        assert reranker(QUERY, iter(TEXTS)) == best[:2]
        assert [request.body["top_n"] for request in server.requests] == [2, 3, 4, 2]
        assert reranker.score(QUERY, TEXTS) == [relevance(QUERY, text) for text in TEXTS]
        reranker.close()


def test_a_call_that_has_nothing_to_ask_sends_nothing():
    """No documents, or blank ones only; a query that is blank is refused."""
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server)
        assert reranker(QUERY, []) == []
        assert reranker(QUERY, ["", " "]) == [RerankResult("", None, 0), RerankResult(" ", None, 1)]
        for query, documents in ((" ", TEXTS), (QUERY, "a text"), (QUERY, [1]), (None, TEXTS)):
            with pytest.raises(QueryError):
                reranker(query, documents)
        reranker.close()
        assert server.connections == 0


def test_a_call_on_its_own_raises_the_services_error():
    """As it is, and within the stage's time."""
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, timeout=0.3)
        server.always(server.error(404, "no such model"))
        with pytest.raises(ServiceError, match=r"answered 404 .*; check model"):
            reranker(QUERY, TEXTS)
        server.always(late(HANGS))
        with pytest.raises(DeadlineError, match=r"timed out after 0.3 s; last attempt: POST .*: no complete reply"):
            reranker(QUERY, TEXTS)
        reranker.close()
