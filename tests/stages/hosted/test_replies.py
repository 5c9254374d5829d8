"""Replies: what is read from those that are right, however they look, and that no wrong one becomes a score."""

from __future__ import annotations

import gzip
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline.plugin import RerankJob
from milvus_stages.hosted import BadReply, Received, get_member, read_figures, read_scores
from milvus_stages.hosted.http import transport
from milvus_stages.hosted.replies import check_scores, read_json
from support import standins
from support.hosted import QUERY, TEXTS, ask, both_ways, each_provider, opened, order, stage
from support.standins import StandIn, chunked, ranking, relevance, variants, wrong

JOB = RerankJob(QUERY, TEXTS)
TOLERATED = {("vllm", "one_more"), ("infinity", "one_more")}
"""Servers of this kind may give more than was asked for."""
CUT_SHORT = ("empty_body", "broken_json", "no_content", "nested_too_deep", "not_utf8")
"""What may be whole the next time."""


@both_ways
@each_provider
def test_right_replies_are_taken(way, provider):
    """Tied, shuffled, with foreign members or without usage, negative, with echoes nobody asked for: all scored."""
    best = [place for place, _ in ranking(QUERY, TEXTS)]
    with StandIn(provider) as server, opened(way, server) as call:
        for name, reply in variants(provider).items():
            server.clear()
            server.always(reply)
            outcome = call()
            (scores,) = outcome.scores
            assert [request.refused for request in server.requests] == [None], name
            assert (outcome.failures, outcome.warnings) == ({}, []), name
            assert all(type(score) is float and math.isfinite(score) for score in scores), name
            if name in ("tied", "whole_scores"):
                assert scores == [{"tied": 0.5, "whole_scores": 1.0}[name]] * 4, name
            else:
                assert order(scores) == best, name
            assert name != "negative_scores" or all(score < 0 for score in scores)
            assert name != "without_usage" or outcome.usage == {"requests": 1}


@both_ways
@each_provider
def test_wrong_replies_are_refused(way, provider):
    """A wrong reply with status 200 never gives a score; the error names the endpoint and what is wrong."""
    with StandIn(provider) as server, opened(way, server, retry={"attempts": 2, "min_wait": 0.001}) as call:
        for name, reply in wrong(provider).items():
            server.clear()
            server.always(reply)
            outcome = call(top_k=2 if name == "one_more" and provider not in ("tei", "jev") else None)
            if (provider, name) in TOLERATED:
                assert outcome.failures == {}, name
                continue
            error = outcome.error()
            assert outcome.scores == [[None] * 4], name
            assert error.status in (200, 204), name
            assert str(error).startswith(f"{stage(server).type}: POST {server.url}/"), name
            assert "answered wrongly: " in str(error), name
            assert not any(text in str(error) for text in TEXTS), name
            assert (name, provider) != ("one_more", "tei") or "document 4" in str(error)
            again = name in CUT_SHORT
            assert (len(server.requests), error.retryable) == ((2, True) if again else (1, False)), name


@both_ways
def test_a_page_in_place_of_a_reply_names_the_address(way):
    """A proxy's or a portal's page with status 200: most likely the address is wrong."""
    with StandIn("cohere") as server:
        server.always(wrong("cohere")["html"])
        assert "answered wrongly: the reply is an HTML page; check base_url" in str(ask(way, server).error())
        server.always(standins.Reply(200, b"hello"))
        assert "answered wrongly: the reply is not JSON; check base_url" in str(ask(way, server).error())


@both_ways
def test_a_reply_in_chunks_is_read(way):
    """Without a length it ends with its last chunk."""
    with StandIn("cohere") as server:
        server.always(chunked())
        assert None not in ask(way, server).scores[0]


@both_ways
@pytest.mark.parametrize("index", ["the secret text of a document that came back", ["x" * 100], {"text": "y" * 100}])
def test_no_message_repeats_what_stands_in_place_of_an_index(way, index):
    """A service that mixes its members up may have put a document there."""
    with StandIn("cohere") as server:
        server.always(standins.Reply(200, {"results": [{"index": index, "relevance_score": 1}] * 4}))
        message = str(ask(way, server).error())
    assert "answered wrongly: it scored document" in message
    assert not any(piece in message for piece in ("secret", "xxxxxxxx", "yyyyyyyy"))


@both_ways
@pytest.mark.parametrize("provider", ["cohere", "voyage", "mixedbread", "vllm", "jev"])
def test_usage_that_is_no_figure_spoils_no_scores(way, provider):
    """It is left out of the report; the ranking is what was asked for."""
    words = ("search_units", "total_tokens", "prompt_tokens", "input_tokens", "output_tokens")
    with StandIn(provider) as server, opened(way, server) as call:
        for figure in (10**400, -3, float("nan"), float("inf"), "12", None, True, [1], {"a": 1}):
            usage = dict.fromkeys(words, figure)
            said = {"usage": usage, "meta": {"billed_units": usage, "warnings": figure}}
            server.always(standins.changed(lambda body, request, said=said: {**body, **said}))
            outcome = call()
            assert outcome.failures == {}, figure
            assert None not in outcome.scores[0], figure
            assert outcome.usage == {"requests": 1}, figure


@both_ways
@pytest.mark.parametrize("tokens", ["9" * 20, "-1", "1.5", "many", ""])
def test_a_header_that_is_no_figure_spoils_no_scores(way, tokens):
    """TEI counts in a header."""
    with StandIn("tei") as server:
        server.always(lambda request, normal: normal.but(headers={"x-compute-tokens": tokens}))
        outcome = ask(way, server)
    assert outcome.scores == [[relevance(QUERY, text) for text in TEXTS]]
    assert outcome.usage == {"requests": 1}


@both_ways
def test_a_compressed_reply_is_read_or_refused(way):
    """A gateway may compress; what does not decompress is a broken connection, and may be whole the next time."""
    coded = {"content-encoding": "gzip"}
    with StandIn("cohere") as server:
        server.always(lambda request, normal: normal.but(body=gzip.compress(normal.content), headers=coded))
        assert None not in ask(way, server).scores[0]
        server.always(lambda request, normal: normal.but(body=normal.content, headers=coded))
        error = ask(way, server).error()
    assert "the reply is compressed and corrupt" in str(error)
    assert error.attempts == 3


@both_ways
def test_a_reply_that_is_too_large_is_not_read_on(way, monkeypatch):
    """It would fill the memory, and no ranking is as long; it is not asked for again."""
    monkeypatch.setattr(transport, "_MOST_BYTES", 2**20)
    with StandIn("cohere") as server:
        server.always(standins.Reply(200, b"[" + b" " * 2**22 + b"]"))
        error = ask(way, server).error()
        assert len(server.requests) == 1
    assert "the reply is larger than 1 MiB" in str(error)


@both_ways
def test_a_services_warnings_are_reported(way):
    """In the report, but for those that repeat a text or a key."""
    said = ["rerank-v3.5 ends in 2027", f"cut: {TEXTS[3].upper()}", 7, "", " "]

    def warned(body, request):
        return {**body, "meta": {"warnings": [*said, f"key {request.key} is old"]}}

    with StandIn("cohere") as server:
        server.always(standins.changed(warned))
        outcome = ask(way, server)
    assert outcome.warnings == [said[0], "(left out: the text repeats a text or a key of the request)"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["results", "data", "index", "score", "relevance_score", "usage", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(VALUES, st.integers(1, 4))
def test_whatever_the_data_it_is_a_ranking_or_refused(data, count):
    """Any JSON: scores for positions that were sent, as many as were asked for, all finite; or `BadReply`."""
    try:
        found = check_scores(read_scores(data), count, count)
    except BadReply:
        return
    assert sorted(found) == list(range(count))
    assert all(type(score) is float and abs(score) < float("inf") for score in found.values())


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_body_it_is_data_or_refused(content):
    """Any bytes."""
    try:
        read_json(Received(200, {}, content))
    except BadReply as error:
        assert str(error).startswith("the reply is ")


def test_the_tolerant_reader_takes_the_shapes_that_services_share():
    """The list itself or under two names, scores under two names, and nothing else is looked at."""
    rows = [{"index": 1, "score": 0.5, "document": {"text": "x"}}, {"index": 0, "relevance_score": 2}]
    assert (
        read_scores(rows)
        == read_scores({"data": rows})
        == read_scores({"results": rows, "data": None})
        == [(1, 0.5), (0, 2)]
    )
    with pytest.raises(BadReply, match="the reply has no 'results' or 'data'"):
        read_scores({"rows": rows})
    with pytest.raises(BadReply, match="result 1 has no index"):
        read_scores([rows[0], {"score": 1}])


def test_figures_are_counted_tolerantly():
    """Members that are missing or not figures are left out; anything but an object has none."""
    assert read_figures({"a": 1, "b": 2.5, "c": "3", "d": 10**400, "e": True}, "a", "b", "c", "d", "e", "f") == {
        "a": 1,
        "b": 2.5,
    }
    assert read_figures(None, "a") == read_figures([1], "a") == read_figures("a", "a") == {}
    assert get_member({"a": {"b": 1}}, "a", "b") == 1
    assert get_member({"a": [1]}, "a", "b") is None
