"""A hosted reranker with a score cache: what is in it is not paid for again."""

from __future__ import annotations

import pytest

from milvus_pipeline import Hit, Pipeline, Query, SearchResult
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages import TEI, Jina
from support.fake_stages.basic import ListedSearch
from support.hosted import HIT_TEXTS, QUERY, rerank, stage_for
from support.standins import PROVIDERS, Reply

DISTINCT = len(set(HIT_TEXTS))


@pytest.fixture
def file(tmp_path):
    """A place for a cache."""
    return str(tmp_path / "scores.db")


def posts(server) -> int:
    """Requests that are paid for."""
    return sum(request.method == "POST" for request in server.requests)


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_second_time_nothing_is_sent(serve, file, provider, way):
    """The ranking is the same as without a cache, and the usage is empty."""
    server = serve(provider)
    plain = rerank(stage_for(server), way)
    sent = posts(server)
    first = rerank(stage_for(server, cache=file), way)
    assert posts(server) > sent
    sent = posts(server)
    second = rerank(stage_for(server, cache=file, top_k=3, max_documents=4, request_timeout=9), way)
    assert posts(server) == sent
    assert first.ranked == plain.ranked
    assert second.ranked == plain.ranked[:3]
    assert (second.usage, second.details["cached"]) == ({}, len(HIT_TEXTS))


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "jina"])
def test_only_new_texts_are_sent(serve, file, provider):
    """Each once, whatever the length of the list."""
    server = serve(provider)
    rerank(stage_for(server, cache=file), texts=HIT_TEXTS[:4])
    sent = posts(server)
    answer = rerank(stage_for(server, cache=file))
    assert posts(server) == sent + 1
    assert answer.details["cached"] == 5  # the first text is there twice
    assert answer.ranked == rerank(stage_for(server)).ranked


def test_a_listwise_model_is_asked_about_whole_lists(serve, file):
    """Its scores hang on the other documents: another list is paid for, the same one is not."""
    server = serve("jina", listwise=True)
    blank = (*HIT_TEXTS, " ")
    assert Jina().scores_lists
    assert not Jina(model="jina-reranker-v2-base-multilingual").scores_lists
    first = rerank(stage_for(server, cache=file), texts=blank)
    assert rerank(stage_for(server, cache=file), texts=blank).ranked == first.ranked
    assert posts(server) == 1
    other = rerank(stage_for(server, cache=file), texts=HIT_TEXTS[:-1])
    assert other.details["cached"] == 0
    assert posts(server) == 2
    assert other.ranked == rerank(stage_for(server), texts=HIT_TEXTS[:-1]).ranked


def test_another_model_pays_for_itself(serve, file):
    """Model, parameters and server make other scores."""
    server = serve("tei")
    first = TEI(base_url=server.url, cache=file)
    assert rerank(first).details["cached"] == 0
    assert rerank(TEI(base_url=server.url, cache=file, raw_scores=True)).details["cached"] == 0
    assert rerank(TEI(base_url=server.url, cache=file, retry={"attempts": 2})).details["cached"] == len(HIT_TEXTS)
    server.provider.model_sha = "f" * 40
    assert rerank(TEI(base_url=server.url, cache=file)).details["cached"] == 0
    assert posts(server) == 3


def test_what_was_paid_for_before_a_failure_is_kept(serve, file):
    """Of a batch that half fails the other half is free the next time."""
    server = serve("cohere")
    results = [SearchResult(Query(text), [Hit(1, "plum", 0.0), Hit(2, "sky", 0.0)]) for text in (QUERY, "the sky")]
    server.script(Reply(400, {"message": "no"}))
    with stage_for(server, cache=file, max_concurrency=1) as stage:
        context = Context(Deadline.after(30), 2)
        stage.process(results, context)
        assert list(context.failures) == [0]
        context = Context(Deadline.after(30), 2)
        stage.process(results, context)
    assert [details["cached"] for details in context.details] == [0, 2]
    assert context.failures == {}


def test_a_service_that_is_gone_is_not_missed_for_what_is_known(serve, file):
    """A query whose scores are all there is answered without it."""
    server = serve("voyage")
    stage = stage_for(server, cache=file)
    first = rerank(stage)
    gone = type(stage)(base_url="http://127.0.0.1:9", cache=file, retry={"attempts": 1})
    assert rerank(gone).error is not None  # another address might be another model
    server.script(*[Reply(500, {"detail": "no"})] * 3)
    assert rerank(stage).ranked == first.ranked
    assert rerank(stage, query="another question").error is not None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_dry_run_plans_what_a_run_pays(serve, file, provider):
    """Without opening anything it looks up what need not be sent."""
    server = serve(provider)
    texts = tuple(dict.fromkeys(HIT_TEXTS))
    stage = stage_for(server, cache=file)
    pipeline = Pipeline([ListedSearch(documents=texts[:3]), stage])
    with pipeline:
        pipeline.run(QUERY)
    sent = posts(server)
    more = Pipeline([ListedSearch(documents=texts), stage])
    (planned,) = more.dry_run().run_batch([QUERY])
    assert posts(server) == sent
    assert not stage.is_open
    with more:
        ran = more.run(QUERY)
    report, actual = planned.report(stage.name), ran.report(stage.name)
    known = 0 if stage.scores_lists else 3
    assert report.details["cached"] == actual.details["cached"] == known
    assert report.planned["requests"] == actual.usage["requests"] == 1
    assert report.planned["documents"] == len(texts) - known
    assert report.warnings == ()


def test_a_dry_run_needs_no_key(serve, file, monkeypatch):
    """What is in the cache is found all the same."""
    server = serve("cohere")
    stage = stage_for(server, cache=file)
    rerank(stage)
    for name in stage.key_names:
        monkeypatch.delenv(name)
    pipeline = Pipeline([ListedSearch(documents=HIT_TEXTS), stage])
    (planned,) = pipeline.dry_run().run_batch([QUERY])
    assert planned.report("cohere").details == {"cached": len(HIT_TEXTS)}
    assert planned.report("cohere").planned == {}
