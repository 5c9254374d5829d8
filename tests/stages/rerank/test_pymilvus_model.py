"""The pymilvus_model stage, with the library's own functions: on small checkpoints, and over real sockets."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from pymilvus.model import reranker as library
from pymilvus.model.reranker import jev, jinaai

from milvus_pipeline import DeadlineError, Hit, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages.rerank.pymilvus_model import PymilvusModel
from support.fake_stages.basic import ListedSearch
from support.standins import Reply, StandIn, changed, late, ranking

QUERY = "where is the red plum?"
TEXTS = ["the sky", "where is the plum?", "a red plum", "the sea", "plum jam", "the red plum", "blue"]


def tei(server: StandIn, **fields) -> PymilvusModel:
    """A stage on the function for TEI."""
    return PymilvusModel(function="TEIRerankFunction", arguments={"api_url": server.url}, **fields)


def processed(stage: PymilvusModel, texts: list[str], context: Context) -> SearchResult:
    """What the stage makes of these texts for one query."""
    stage.open()
    (result,) = stage.process(results_for([QUERY], texts), context)
    return result


def results_for(queries: list[str], texts: list[str]) -> list[SearchResult]:
    """A result for each query with these texts as hits."""
    return [SearchResult(Query(query), [Hit(i, text, 0.0) for i, text in enumerate(texts)]) for query in queries]


def local(kind: str, request) -> tuple[str, dict]:
    """The name and the arguments of a function on a small checkpoint."""
    if kind == "bge":
        arguments = {"model_name": request.getfixturevalue("xlm_roberta"), "model_class": "encoder-only-base"}
        return "BGERerankFunction", {**arguments, "device": "cpu", "use_fp16": False}
    return "CrossEncoderRerankFunction", {"model_name": request.getfixturevalue("bert"), "device": "cpu"}


# -- local models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bge", "cross_encoder"])
def test_a_local_function_scores_as_it_does_alone(kind, request, queries, documents):
    """Order and scores are those of the library's function itself, and blank documents come last without a score."""
    function, arguments = local(kind, request)
    direct = getattr(library, function)(**arguments)
    texts = [text for text in documents if text.strip()]
    with closing(PymilvusModel(function=function, arguments=arguments)) as stage:
        for query in queries:
            ranked = stage(query, documents)
            expected = direct(query, texts, top_k=len(texts))
            assert [(one.text, one.score) for one in ranked[:-2]] == [(one.text, float(one.score)) for one in expected]
            assert [(one.index, one.score) for one in ranked[-2:]] == [(0, None), (1, None)]


@pytest.mark.parametrize("kind", ["bge", "cross_encoder"])
def test_a_batch_and_an_event_loop_get_the_same(kind, request, queries, documents):
    """Queries together, one by one, and from an event loop have equal hits."""
    function, arguments = local(kind, request)
    given = results_for(queries[:3], documents[:8])
    with closing(PymilvusModel(function=function, arguments=arguments, top_k=4)) as stage:
        stage.open()
        together = stage.process(given, Context(Deadline(), 3))
        alone = [stage.process([result], Context(Deadline(), 1))[0] for result in given]
        asynchronous = asyncio.run(stage.aprocess(given, Context(Deadline(), 3)))
    assert together == alone == asynchronous
    assert all(len(result) == 4 and "pymilvus_model" in result.hits[0].scores for result in together)


def test_a_model_that_cannot_be_loaded_is_told_with_its_cause(tmp_path):
    """What the function says of it reaches the error, and its own exception is the cause."""
    stage = PymilvusModel(function="CrossEncoderRerankFunction", arguments={"model_name": str(tmp_path)})
    with pytest.raises(StageError, match="CrossEncoderRerankFunction cannot be made: ") as caught:
        stage.open()
    assert caught.value.__cause__ is not None
    assert not stage.is_open


# -- services ----------------------------------------------------------------------------------------------------


def test_tei_answers_for_five_and_the_others_come_last():
    """Documents that the function cuts off are kept, unscored and in their order, and the report says so."""
    context = Context(Deadline(), 1)
    with StandIn("tei") as server, closing(tei(server)) as stage:
        result = processed(stage, TEXTS, context)
    best = ranking(QUERY, TEXTS, 5)
    left = sorted(set(range(7)) - {index for index, _ in best})
    assert [(hit.id, hit.scores.get("pymilvus_model")) for hit in result] == [*best, *((index, None) for index in left)]
    (warning,) = context.warnings[0]
    assert "TEIRerankFunction returned 5 of 7 documents" in warning
    assert "use the stage `tei`" in warning
    assert [(request.body["texts"], request.refused) for request in server.requests] == [(TEXTS, None)]


def test_few_documents_are_ranked_without_a_warning():
    """What the function answers in full needs no word."""
    context = Context(Deadline(), 1)
    with StandIn("tei") as server, closing(tei(server)) as stage:
        result = processed(stage, TEXTS[:4], context)
    assert [(hit.id, hit.score) for hit in result] == ranking(QUERY, TEXTS[:4])
    assert context.warnings == [[]]


def test_blank_documents_are_not_sent():
    """They rank last without a score, and the report counts them; where all are blank nothing is sent at all."""
    context = Context(Deadline(), 1)
    with StandIn("tei") as server, closing(tei(server)) as stage:
        result = processed(stage, ["", "blue", " \n", "red plum"], context)
        blank = processed(stage, ["", " "], Context(Deadline(), 1))
        stage.close()
    assert [hit.id for hit in result] == [3, 1, 0, 2]
    assert context.warnings == [["2 of 4 documents are blank; ranked last, without a score"]]
    assert context.details == [{"documents_blank": 2}]
    assert [hit.scores for hit in blank] == [{}, {}]
    assert [request.body["texts"] for request in server.requests] == [["blue", "red plum"]]


def test_jina_gets_the_key_of_the_environment(monkeypatch):
    """The value of the variable is the key, without blanks around it, and all documents are asked for."""
    arguments = {"api_key": {"env": "MY_JINA_KEY"}}
    with StandIn("jina", no_echo=False) as server:
        monkeypatch.setenv("MY_JINA_KEY", f" {server.key}\n")
        monkeypatch.setattr(jinaai, "API_URL", f"{server.url}/v1/rerank")
        with closing(PymilvusModel(function="JinaRerankFunction", arguments=arguments)) as stage:
            ranked = stage(QUERY, TEXTS, top_k=2)
    assert [(one.index, one.score) for one in ranked] == ranking(QUERY, TEXTS, 2)
    assert [(request.body["top_n"], request.refused) for request in server.requests] == [(7, None)]


@pytest.mark.parametrize("document", ["a string", None])
def test_a_reply_that_jinas_function_does_not_read_names_the_stage_to_take(monkeypatch, document):
    """A documented reply that the function crashes on is explained."""

    def edit(body, _):
        return {**body, "results": [{**item, "document": document} for item in body["results"]]}

    with StandIn("jina", no_echo=False) as server:
        server.always(changed(edit))
        monkeypatch.setenv("JINAAI_API_KEY", server.key)
        monkeypatch.setattr(jinaai, "API_URL", f"{server.url}/v1/rerank")
        with (
            closing(PymilvusModel(function="JinaRerankFunction")) as stage,
            pytest.raises(StageError, match=r"JinaRerankFunction failed: TypeError: .*use the stage `jina`$"),
        ):
            stage(QUERY, TEXTS)


def test_jev_leaves_out_what_it_is_not_answered(monkeypatch):
    """A document that the service drops is unscored, and the report counts those that are not."""
    context = Context(Deadline(), 1)
    with StandIn("jev") as server:
        server.always(Reply(200, {"answers": {"d0": {"noul": 0.2}, "d2": {"noul": 0.9}}}))
        monkeypatch.setenv("TYPESAFE_API_KEY", server.key)
        monkeypatch.setattr(jev, "API_URL", f"{server.url}/v1/systemone")
        with closing(PymilvusModel(function="JevRerankFunction")) as stage:
            result = processed(stage, TEXTS[:3], context)
    assert [hit.id for hit in result] == [2, 0, 1]
    assert "JevRerankFunction returned 2 of 3 documents" in context.warnings[0][0]


def test_cohere_fails_with_the_stage_to_take(monkeypatch):
    """The function is made with today's SDK, and its first call, which sends nothing, says what to use instead."""
    monkeypatch.setenv("CO_API_KEY", "FAKE-cohere-key")
    with closing(PymilvusModel(function="CohereRerankFunction")) as stage:
        stage.open()
        with pytest.raises(StageError, match="cannot run with today's SDK of Cohere: use the stage `cohere`") as caught:
            stage(QUERY, TEXTS)
    assert "return_documents" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([{"index": 2, "score": 0.5}], "an index that is no whole number from 0 to 1"),
        ([{"index": -1, "score": 0.5}], "an index that is no whole number from 0 to 1"),
        ([{"index": True, "score": 0.5}], "an index that is no whole number from 0 to 1"),
        ([{"index": 1.0, "score": 0.5}], "an index that is no whole number from 0 to 1"),
        ([{"index": None, "score": 0.5}], "an index that is no whole number from 0 to 1"),
        ([{"index": 1, "score": 0.5}, {"index": 1, "score": 0.4}], "the index 1 twice"),
        ([{"index": 1, "score": float("nan")}], "document 1 a score that is not a finite number"),
        ([{"index": 1, "score": float("inf")}], "document 1 a score that is not a finite number"),
        ([{"index": 1, "score": "0.5"}], "document 1 a score that is not a finite number"),
        ([{"index": 1, "score": None}], "document 1 a score that is not a finite number"),
        ([{"index": 1, "score": True}], "document 1 a score that is not a finite number"),
        ([{"index": 1, "score": [0.5]}], "document 1 a score that is not a finite number"),
        ([{"index": 1, "score": 10**400}], "document 1 a score that is not a finite number"),
    ],
)
def test_a_wrong_answer_is_refused(results, says):
    """Indices and scores are checked, whatever the function believes of them."""
    with (
        StandIn("tei") as server,
        closing(tei(server)) as stage,
        pytest.raises(StageError, match=f"TEIRerankFunction gave {says}"),
    ):
        server.always(Reply(200, [{"text": "", **result} for result in results]))
        stage(QUERY, ["a", "b"])


def test_a_query_that_fails_does_not_spoil_the_others():
    """Of three queries the second fails; the others are ranked."""
    context = Context(Deadline(), 3)
    with StandIn("tei") as server, closing(tei(server)) as stage:
        server.script(lambda _, normal: normal, server.error(429, "no free slot"))
        stage.open()
        results = stage.process(results_for([QUERY] * 3, TEXTS[:3]), context)
    ranked = [index for index, _ in ranking(QUERY, TEXTS[:3])]
    assert list(context.failures) == [1]
    assert "RuntimeError: no free slot; " in str(context.failures[1])
    assert [[hit.id for hit in result] for result in results] == [ranked, [0, 1, 2], ranked]


def test_a_reply_that_is_not_json_names_the_stage_to_take():
    """An HTML page of a gateway is told, with its cause."""
    with (
        StandIn("tei") as server,
        closing(tei(server)) as stage,
        pytest.raises(StageError, match=r"JSONDecodeError: .*hides the status: use the stage `tei`") as caught,
    ):
        server.always(Reply(502, b"<html>bad gateway</html>"))
        stage(QUERY, TEXTS)
    assert type(caught.value.__cause__).__name__ == "JSONDecodeError"


# -- time and threads --------------------------------------------------------------------------------------------


def test_a_closed_stage_says_so():
    """A stage that is not open is no crash."""
    with pytest.raises(StageError, match="pymilvus_model is not open"):
        PymilvusModel(function="TEIRerankFunction").score("plum", ["a"])


def test_one_call_is_under_way_at_a_time():
    """Four threads share a stage, and the service never has two requests at once."""
    with StandIn("tei", latency=0.02) as server, closing(tei(server)) as stage, ThreadPoolExecutor(4) as pool:
        stage.open()
        scores = list(pool.map(lambda text: stage.score(QUERY, [text]), TEXTS))
    assert server.most_in_flight == 1
    assert scores == [[ranking(QUERY, [text])[0][1]] for text in TEXTS]


def test_time_that_is_used_up_ends_the_work():
    """A deadline that has come stops the stage before its first call."""
    with StandIn("tei") as server, closing(tei(server)) as stage:
        stage.open()
        with pytest.raises(TimeoutError, match="raise `timeout`"):
            stage.score_batch([RerankJob(QUERY, TEXTS)], Context(Deadline.after(0.0), 1))
    assert server.requests == []


def test_a_query_that_was_answered_is_kept_when_time_runs_out():
    """Where the time is up between two queries, the first keeps its scores and the second fails."""
    jobs = [RerankJob(QUERY, ["plum"]), RerankJob("another", ["plum"])]
    with StandIn("tei", latency=0.6) as server, closing(tei(server)) as stage:
        stage.open()
        context = Context(Deadline.after(0.5), 2)
        scores = stage.score_batch(jobs, context)
    assert scores[0] == [ranking(QUERY, ["plum"])[0][1]]
    assert list(context.failures) == [1]
    assert isinstance(context.failures[1], DeadlineError)
    assert len(server.requests) == 1


def test_an_event_loop_keeps_what_was_answered_when_time_runs_out():
    """The call under way is not waited for; its query fails, and the one before it keeps its scores."""
    jobs = [RerankJob(QUERY, ["plum"]), RerankJob("another", ["plum"])]
    with StandIn("tei") as server, closing(tei(server)) as stage:
        stage.open()
        server.script(late(0), late(2))
        context = Context(Deadline.after(1.0), 2)
        scores = asyncio.run(stage.ascore_batch(jobs, context))
    assert scores == [[ranking(QUERY, ["plum"])[0][1]], [None]]
    assert list(context.failures) == [1]
    assert "did not answer in the time given (1 s)" in str(context.failures[1])


def test_a_batch_that_was_given_up_calls_no_more():
    """The call under way ends, and the queries behind it are not asked."""
    context = Context(Deadline(), 3)
    with StandIn("tei") as server, closing(tei(server)) as stage, ThreadPoolExecutor(1) as pool:
        stage.open()
        server.hold()
        batch = pool.submit(stage.score_batch, [RerankJob(QUERY, ["plum"])] * 3, context)
        try:
            server.wait_for(1)
            context.cancel()
        finally:
            server.release()
        with pytest.raises(DeadlineError, match="given up"):
            batch.result(30)
    assert len(server.requests) == 1


def test_waiting_for_another_call_ends_with_the_deadline():
    """A call that has no timeout holds up others for no longer than they have time."""
    with StandIn("tei") as server, closing(tei(server)) as stage, ThreadPoolExecutor(1) as pool:
        stage.open()
        server.hold()
        first = pool.submit(stage.score, QUERY, ["plum"])
        try:
            server.wait_for(1)
            with pytest.raises(DeadlineError, match="while another call of TEIRerankFunction was under way"):
                stage.score_batch([RerankJob(QUERY, ["plum"])], Context(Deadline.after(0.1), 1))
        finally:
            server.release()
        assert first.result(30) == [ranking(QUERY, ["plum"])[0][1]]


def test_a_dry_run_tells_what_a_function_that_calls_a_service_would_send():
    """One request a query, without opening the stage; a function that scores here sends nothing."""
    service = PymilvusModel(function="JinaRerankFunction", top_k=1)
    with Pipeline([ListedSearch(), service]).dry_run() as dry:
        (result,) = dry.run_batch(["red"])
    assert result.report("pymilvus_model").planned.keys() == {"requests", "documents", "tokens"}
    assert result.report("pymilvus_model").planned["requests"] == 1
    assert result.report("pymilvus_model").planned["documents"] == 3  # one of the four is blank
    assert not PymilvusModel(function="BGERerankFunction").sends
    assert not service.is_open
