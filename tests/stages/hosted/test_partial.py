"""Partial results: what is kept if time runs out after some requests of a query were answered."""

from __future__ import annotations

import asyncio
import time

from milvus_pipeline import Pipeline
from milvus_pipeline.plugin import RerankJob
from support.fake_stages.basic import ListedSearch
from support.hosted import QUERY, TEXTS, ask, asked_of, both_ways, keyed, scored, stage
from support.standins import StandIn, late, relevance

HANGS = 30.0
MANY = ("plum one", "a red plum", *(f"pear {number}" for number in range(6)), " ")


def slow_for(word):
    """A reply that never comes if a document has the word."""
    return lambda request, normal: late(HANGS)(request, normal) if word in str(request.body) else normal


@both_ways
def test_what_was_scored_in_time_is_kept(way):
    """The hits that were not reached rank below, in their order; report and result say that it is a part."""
    with StandIn("cohere") as server, keyed(server):
        server.always(slow_for("pear"))
        reranker = stage(server, max_documents=2)
        with Pipeline([ListedSearch(documents=MANY), reranker], timeout=1) as pipeline:
            result = asyncio.run(pipeline.arun(QUERY)) if way == "async" else pipeline.run(QUERY)
    report = result.report("cohere")
    assert (result.status, report.status, report.reason_code) == ("partial", "partial", "deadline")
    assert report.reason.startswith("6 of 9 documents were not scored within 1 s; ranked last")
    assert report.details["documents_late"] == 6
    assert report.warnings == ("1 of 9 documents are blank; ranked last, without a score",)
    best = sorted((0, 1), key=lambda place: -relevance(QUERY, MANY[place]))
    assert [hit.id for hit in result] == [*best, *range(2, 9)]
    assert [hit.scored_by for hit in result] == ["cohere"] * 2 + ["listed_search"] * 7
    assert report.usage["search_units"] == 1


@both_ways
def test_what_the_rate_leaves_no_time_for_is_not_waited_for(way):
    """Two of four requests are allowed in the time: those of the best candidates are sent, and that is that."""
    began = time.monotonic()
    with StandIn("cohere") as server:
        outcome = ask(way, server, MANY[:8], timeout=30, max_documents=2, requests_per_minute=2, max_concurrency=1)
        assert [request.body["documents"] for request in server.requests] == [list(MANY[:2]), list(MANY[2:4])]
    assert time.monotonic() - began < 25
    assert outcome.failures == {}
    assert [score is None for score in outcome.scores[0]] == [False] * 4 + [True] * 4
    assert outcome.context.partials[0].code == "deadline"


@both_ways
def test_the_best_candidates_of_every_query_come_first(way):
    """The first requests of all queries are sent before the second ones."""
    jobs = [RerankJob(query, MANY[:4]) for query in ("one", "two", "three")]
    with StandIn("cohere") as server:
        scored(way, server, jobs, max_documents=2, max_concurrency=1)
        asked = [(asked_of(request), request.body["documents"][0]) for request in server.requests]
    assert asked == [(job.query, first) for first in (MANY[0], MANY[2]) for job in jobs]


@both_ways
def test_a_failure_is_no_lack_of_time(way):
    """If one request is refused, the query fails, whether the others were answered or not."""
    with StandIn("cohere") as server:
        slow = slow_for("pear 4")
        server.always(
            lambda request, normal: server.error(404) if "pear 0" in str(request.body) else slow(request, normal)
        )
        outcome = ask(way, server, MANY[:8], timeout=1, max_documents=2)
    assert outcome.failures[0].reason_code == "refused"
    assert outcome.context.partials == [None]


@both_ways
def test_without_a_score_there_is_nothing_to_keep(way):
    """The query fails with the deadline; a listwise model gives all scores or none."""
    with StandIn("jina") as server:
        server.always(late(HANGS))
        outcome = ask(way, server, MANY, timeout=0.5, model="jina-reranker-v3")
    assert outcome.failures[0].reason_code == "deadline"
    assert outcome.context.partials == [None]


@both_ways
def test_a_query_that_was_not_ranked_has_no_warning_of_its_ranks(way):
    """There is no warning that blank documents rank last if nothing was ranked; the other query has one."""
    texts = [*TEXTS, " "]
    with StandIn("cohere") as server:
        server.always(lambda request, normal: server.error(402) if asked_of(request) == "bad" else normal)
        outcome = scored(way, server, [RerankJob("bad", texts), RerankJob("good", texts)])
    assert outcome.context.warnings == [[], ["1 of 5 documents are blank; ranked last, without a score"]]


@both_ways
def test_a_key_that_is_refused_is_not_tried_with_every_query(way):
    """Requests in flight end, and no other is sent; each query's error says whether it was sent."""
    with StandIn("cohere", locked=True) as server:
        server.always(server.error(401, "wrong key"))
        outcome = scored(way, server, [RerankJob(QUERY, TEXTS)] * 20, max_concurrency=2)
        sent = len(server.requests)
    assert sent <= 4
    assert len(outcome.failures) == 20
    assert {(error.status, error.reason_code) for error in outcome.failures.values()} == {(401, "unauthorized")}
    assert sum("this one was not sent" in str(error) for error in outcome.failures.values()) == 20 - sent
    assert sum("usage" in details for details in outcome.context.details) == sent


@both_ways
def test_a_forbidden_query_leaves_the_others_alone(way):
    """A 403 may be a firewall's word on one text."""
    with StandIn("cohere") as server:
        server.always(lambda request, normal: server.error(403) if asked_of(request) == "bad" else normal)
        outcome = scored(way, server, [RerankJob(query, TEXTS) for query in ("bad", "good")], max_concurrency=1)
    assert list(outcome.failures) == [0]
