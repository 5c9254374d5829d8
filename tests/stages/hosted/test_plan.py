"""The request planner by itself: which documents go into which request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline import StageError
from milvus_pipeline.plugin import RerankJob
from milvus_stages.hosted.plan import Limits, estimated_tokens, plan, sendable

TEXTS = st.lists(st.text(alphabet="ab \n中", max_size=12), max_size=30)
LIMITS = st.builds(
    Limits,
    documents=st.none() | st.integers(1, 12),
    tokens=st.none() | st.integers(1, 60),
    document_tokens=st.none() | st.integers(1, 5),
    query_repeats=st.booleans(),
)


def cost(job: RerankJob, places, limits: Limits) -> int:
    """The tokens of a request, by the words of `Limits`."""
    query = estimated_tokens(job.query)
    sizes = [min(estimated_tokens(job.texts[place]), limits.document_tokens or 10**9) for place in places]
    return sum(sizes) + query * (len(sizes) if limits.query_repeats else 1)


@given(texts=TEXTS, limits=LIMITS, top_k=st.none() | st.integers(1, 40), query=st.text("xy", min_size=1, max_size=9))
def test_a_plan_keeps_to_the_limits_and_loses_nothing(texts, limits, top_k, query):
    """Every text that is not blank is in exactly one request, in order, and each request is within the limits."""
    job = RerankJob(query, texts, top_k)
    planned = plan(job, limits, "service")
    places = [place for part in planned.parts for place in part.places]
    assert places == [place for place, text in enumerate(texts) if text.strip()]
    assert planned.blank == len(texts) - len(places)
    for part in planned.parts:
        assert 1 <= len(part.places) <= (limits.documents or len(texts))
        assert part.tokens == cost(job, part.places, limits)
        assert part.tokens <= (limits.tokens or 10**9) or len(part.places) == 1
        assert part.top_k == min(top_k or len(part.places), len(part.places))


@given(texts=TEXTS, limits=LIMITS, top_k=st.integers(1, 40), seed=st.randoms(use_true_random=False))
def test_the_best_of_the_parts_hold_the_best_of_all(texts, limits, top_k, seed):
    """Each request asks for enough scores that the union contains what one request would have given, ties included."""
    job = RerankJob("q", texts, top_k)
    scores = [seed.choice([0.1, 0.2, 0.3]) for _ in texts]

    def best(places):
        return sorted(places, key=lambda place: (-scores[place], place))

    planned = plan(job, limits, "service")
    union = [place for part in planned.parts for place in best(part.places)[: part.top_k]]
    whole = [place for place, text in enumerate(texts) if text.strip()]
    assert best(union)[:top_k] == best(whole)[:top_k]


@given(count=st.integers(1, 200), most=st.integers(1, 50))
def test_groups_are_as_few_and_as_even_as_can_be(count, most):
    """The requests are as few as possible, and none is much smaller than another."""
    parts = plan(RerankJob("q", ["text"] * count), Limits(documents=most), "service").parts
    sizes = [len(part.places) for part in parts]
    assert len(sizes) == -(-count // most)
    assert max(sizes) - min(sizes) <= 1


@given(count=st.integers(2, 30), top_k=st.none() | st.integers(1, 40))
def test_halves_hold_the_whole(count, top_k):
    """Two requests in place of one: the same documents, none empty, and enough of them asked for."""
    (part,) = plan(RerankJob("q", ["text"] * count, top_k), Limits(), "service").parts
    halves = part.halves()
    assert halves[0].places + halves[1].places == part.places
    for half in halves:
        assert half.top_k == min(top_k or count, len(half.places)) >= 1
    assert abs(len(halves[0].places) - len(halves[1].places)) <= 1


def test_tokens_are_counted_by_bytes_and_the_query_once_a_document():
    """Three bytes of UTF-8 are a token, begun ones count, and a text that the service cuts counts as far as that."""
    job = RerankJob("123456", ["abc", "abcd", "中文", "x" * 3000])
    assert [estimated_tokens(text) for text in ("", *job.texts)] == [1, 1, 2, 2, 1000]
    assert plan(job, Limits(), "service").figures == {"requests": 1, "documents": 4, "tokens": 1005 + 4 * 2}
    assert plan(job, Limits(query_repeats=False), "service").figures["tokens"] == 1005 + 2
    assert plan(job, Limits(document_tokens=10), "service").figures["tokens"] == 15 + 4 * 2


def test_a_listwise_list_is_refused_or_flagged_and_never_split():
    """With too many documents it is not sent; with too many tokens it is sent whole, with a warning."""
    job = RerankJob("q", ["abc"] * 9 + [" "])
    with pytest.raises(StageError, match="so 9 of them cannot be split into requests of 8; retrieve fewer"):
        plan(job, Limits(documents=8, listwise=True), "service (model-x)")
    long = plan(job, Limits(documents=9, tokens=5, query_repeats=False, listwise=True), "service (model-x)")
    assert [len(part.places) for part in long.parts] == [9]
    assert long.blank == 1
    assert "about 10 tokens in one request, but service (model-x) reads 5; not split" in long.warnings[0]
    assert plan(job, Limits(documents=9, tokens=10, query_repeats=False, listwise=True), "s").warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("emoji \U0001f34e", "emoji \U0001f34e"),
        ("half \ud83c here", "half � here"),
        ("\udc00", "�"),
        ("two halves \ud83c\udf4e", "two halves \U0001f34e"),
    ],
)
def test_halves_of_surrogate_pairs_are_replaced(text, expected):
    """What UTF-8 cannot carry becomes U+FFFD, two halves that belong together become their character."""
    assert sendable(text) == expected


@given(st.text(st.characters(), max_size=20))
def test_every_text_can_be_sent(text):
    """Whatever the text, it can be encoded; what could be before is left as it is."""
    sendable(text).encode()
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert sendable(text) == text
