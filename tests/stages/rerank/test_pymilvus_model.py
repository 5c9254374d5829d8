"""The pymilvus_model stage, with the library's own functions: on small checkpoints, and over real sockets."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from pymilvus.model import reranker as library
from pymilvus.model.reranker import jinaai

from milvus_pipeline import ConfigError, DeadlineError, Hit, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages.rerank.pymilvus_model import PymilvusModel
from support.fake_stages.basic import ListedSearch
from support.standins import Reply, StandIn, late, ranking

KEY = "jina_0123456789abcdefghij"
QUERY = "where is the red plum?"
TEXTS = ["the sky", "where is the plum?", "a red plum", "the sea", "plum jam", "the red plum", "blue"]
DOCUMENT = 'He said "the plum is red",\nand left for München by the early train.'
VARIABLES = "CO_API_KEY COHERE_API_KEY VOYAGE_API_KEY VOYAGE_API_KEY_PATH JINAAI_API_KEY TYPESAFE_API_KEY"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    """Removes the keys of this machine from the environment."""
    for name in VARIABLES.split():
        monkeypatch.delenv(name, raising=False)


def tei(server: StandIn) -> PymilvusModel:
    """A stage on the function for TEI."""
    return PymilvusModel(function="TEIRerankFunction", arguments={"api_url": server.url})


def processed(stage: PymilvusModel, texts: list[str], context: Context) -> SearchResult:
    """What the stage makes of these texts for one query."""
    stage.open()
    (result,) = stage.process(results_for([QUERY], texts), context)
    return result


def results_for(queries: list[str], texts: list[str]) -> list[SearchResult]:
    """A result for each query with these texts as hits."""
    return [SearchResult(Query(query), [Hit(i, text, 0.0) for i, text in enumerate(texts)]) for query in queries]


def cross_encoder(model: str, **fields) -> PymilvusModel:
    """A stage on the function for cross-encoders."""
    arguments = {"model_name": model, "device": "cpu"}
    return PymilvusModel(function="CrossEncoderRerankFunction", arguments=arguments, **fields)


@pytest.mark.parametrize("kind", ["bge", "cross_encoder"])
def test_a_local_function_scores_as_it_does_alone(kind, bert, xlm_roberta, queries, documents):
    """Order and scores are those of the library's function itself, and blank documents come last without a score."""
    stage = cross_encoder(bert)
    if kind == "bge":
        arguments = {"model_name": xlm_roberta, "model_class": "encoder-only-base", "device": "cpu", "use_fp16": False}
        stage = PymilvusModel(function="BGERerankFunction", arguments=arguments)
    direct = getattr(library, stage.function)(**stage.arguments)
    texts = [text for text in documents if text.strip()]
    with closing(stage):
        for query in queries:
            ranked = stage(query, documents)
            expected = direct(query, texts, top_k=len(texts))
            assert [(one.text, one.score) for one in ranked[:-2]] == [(one.text, float(one.score)) for one in expected]
            assert [(one.index, one.score) for one in ranked[-2:]] == [(0, None), (1, None)]


def test_a_batch_and_an_event_loop_get_the_same(bert, queries, documents):
    """Queries together, one by one, and from an event loop have equal hits."""
    given = results_for(queries[:3], documents[:8])
    with closing(cross_encoder(bert, top_k=4)) as stage:
        stage.open()
        together = stage.process(given, Context(Deadline(), 3))
        alone = [stage.process([result], Context(Deadline(), 1))[0] for result in given]
        asynchronous = asyncio.run(stage.aprocess(given, Context(Deadline(), 3)))
    assert together == alone == asynchronous
    assert all(len(result) == 4 and "pymilvus_model" in result.hits[0].scores for result in together)


def test_tei_answers_for_five_and_the_others_come_last():
    """Documents that the function cuts off are kept, unscored and in their order, and the report says so."""
    context = Context(Deadline(), 1)
    with StandIn("tei") as server, closing(tei(server)) as stage:
        result = processed(stage, TEXTS, context)
        stage.close()
    best = ranking(QUERY, TEXTS, 5)
    left = sorted(set(range(7)) - {index for index, _ in best})
    assert [(hit.id, hit.scores.get("pymilvus_model")) for hit in result] == [*best, *((index, None) for index in left)]
    left_out = "TEIRerankFunction left out 2 of 7 documents; ranked last, without a score; the stage `tei` scores all"
    assert context.warnings == [[left_out]]
    assert [(request.body["texts"], request.refused) for request in server.requests] == [(TEXTS, None)]


def test_blank_documents_are_not_sent():
    """They rank last without a score, and the report counts them; if all are blank nothing is sent at all."""
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
    """The value of the variable is the key, without spaces around it, and all documents are requested."""
    arguments = {"api_key": {"env": "MY_JINA_KEY"}}
    with StandIn("jina", no_echo=False) as server:
        monkeypatch.setenv("MY_JINA_KEY", f" {server.key}\n")
        monkeypatch.setattr(jinaai, "API_URL", f"{server.url}/v1/rerank")
        with closing(PymilvusModel(function="JinaRerankFunction", arguments=arguments)) as stage:
            ranked = stage(QUERY, TEXTS, top_k=2)
    assert [(one.index, one.score) for one in ranked] == ranking(QUERY, TEXTS, 2)
    assert [(request.body["top_n"], request.refused) for request in server.requests] == [(7, None)]


def test_a_function_that_cannot_run_names_the_stage_to_use(monkeypatch):
    """Without a key the library's function for Jina is not created; that for Cohere fails with today's SDK."""
    with pytest.raises(StageError, match=r"cannot be created: ValueError; .*api_key: {env: NAME}.* stage `jina`"):
        PymilvusModel(function="JinaRerankFunction").open()
    monkeypatch.setenv("CO_API_KEY", "FAKE-cohere-key")
    with closing(PymilvusModel(function="CohereRerankFunction")) as stage:
        stage.open()
        with pytest.raises(StageError, match=r"CohereRerankFunction failed: TypeError; .* use the stage `cohere`"):
            stage(QUERY, TEXTS)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"index": 2, "score": 0.5}], "one that is not from 0 to 1"),
        ([{"index": True, "score": 0.5}], "one that is not from 0 to 1"),
        ([{"index": [1], "score": 0.5}], "one that is not from 0 to 1"),
        ([{"index": 1, "score": 0.5}, {"index": 1, "score": 0.4}], "returned an index twice"),
        ([{"index": 1, "score": float("nan")}], "not a finite number"),
        ([{"index": 1, "score": [0.5]}], "not a number"),
    ],
)
def test_a_wrong_answer_is_refused(results, message):
    """Indices and scores are checked, whatever the function makes of them."""
    with StandIn("tei") as server, closing(tei(server)) as stage, pytest.raises(StageError, match=message):
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
    assert str(context.failures[1]).startswith("TEIRerankFunction failed: RuntimeError; ")
    assert [[hit.id for hit in result] for result in results] == [ranked, [0, 1, 2], ranked]


def test_a_dry_run_plans_what_a_function_that_calls_a_service_would_send():
    """One request per query, without opening the stage; a function that scores here sends nothing."""
    service = PymilvusModel(function="JinaRerankFunction", top_k=1)
    with Pipeline([ListedSearch(), service]).dry_run() as dry:
        (result,) = dry.run_batch(["red"])
    assert result.report("pymilvus_model").planned.keys() == {"requests", "documents", "tokens"}
    assert result.report("pymilvus_model").planned["requests"] == 1
    assert result.report("pymilvus_model").planned["documents"] == 3  # one of the four is blank
    assert not PymilvusModel(function="BGERerankFunction").sends
    assert not service.is_open


def test_one_call_runs_at_a_time():
    """Four threads share a stage, and the service never has two requests at once."""
    with StandIn("tei", latency=0.02) as server, closing(tei(server)) as stage, ThreadPoolExecutor(4) as pool:
        stage.open()
        scores = list(pool.map(lambda text: stage.score(QUERY, [text]), TEXTS))
    assert server.most_in_flight == 1
    assert scores == [[ranking(QUERY, [text])[0][1]] for text in TEXTS]


@pytest.mark.parametrize("mode", ["blocking", "event loop"])
def test_a_query_that_was_answered_is_kept_when_time_runs_out(mode):
    """The first query keeps its scores and the second fails; an event loop does not wait for the running call."""
    jobs = [RerankJob(QUERY, ["plum"]), RerankJob("another", ["plum"])]
    context = Context(Deadline.after(1.0), 2)
    with StandIn("tei") as server, closing(tei(server)) as stage:
        stage.open()
        if mode == "blocking":
            server.script(late(1.1))
            scores = stage.score_batch(jobs, context)
        else:
            server.script(late(0), late(2))
            scores = asyncio.run(stage.ascore_batch(jobs, context))
    assert scores == [[ranking(QUERY, ["plum"])[0][1]], [None]]
    assert list(context.failures) == [1]
    assert "did not answer in the time given (1 s)" in str(context.failures[1])


def test_a_batch_that_was_cancelled_calls_no_more():
    """The call that is running ends, and the queries behind it are not sent."""
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
        with pytest.raises(DeadlineError):
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
            context = Context(Deadline.after(0.1), 1)
            stage.score_batch([RerankJob(QUERY, ["plum"])], context)
            assert "did not answer in the time given (0.1 s)" in str(context.failures[0])
        finally:
            server.release()
        assert first.result(30) == [ranking(QUERY, ["plum"])[0][1]]


@pytest.mark.parametrize("text", [QUERY, json.dumps([DOCUMENT]), DOCUMENT[-25:]])
def test_no_error_of_a_local_function_carries_a_text(monkeypatch, bert, text):
    """Of an exception that repeats a text only the class is named; others are quoted and kept as the cause."""
    errors = [ValueError("the device is gone"), ValueError(f"cannot use {text}")]

    def fail(self, query, documents, top_k=5):
        raise errors.pop()

    monkeypatch.setattr(library.CrossEncoderRerankFunction, "__call__", fail)
    with closing(cross_encoder(bert)) as stage:
        with pytest.raises(StageError, match=r"^CrossEncoderRerankFunction failed: ValueError; ") as private:
            stage(QUERY, [DOCUMENT])
        with pytest.raises(StageError, match="failed: ValueError: the device is gone; ") as harmless:
            stage(QUERY, [DOCUMENT])
    assert private.value.__cause__ is private.value.__context__ is None
    assert isinstance(harmless.value.__cause__, ValueError)


@pytest.mark.parametrize("given", [{"api_key": {"env": "MY_JINA_KEY"}}, {}])
def test_no_error_of_a_service_carries_a_message(monkeypatch, given):
    """A service may repeat a text, a key, or a key that only the function knows: of its error the class is named."""
    monkeypatch.setenv("MY_JINA_KEY" if given else "JINAAI_API_KEY", KEY)
    stage = PymilvusModel(function="JinaRerankFunction", arguments=given)
    with StandIn("jina") as server, closing(stage):
        server.always(server.error(401, f"Invalid key {KEY[5:14]}... given"))
        monkeypatch.setattr(jinaai, "API_URL", server.url)
        with pytest.raises(StageError, match=r"^JinaRerankFunction failed: \w+; check its arguments") as caught:
            stage("plum", ["a red plum"])
        assert KEY not in repr(stage) + str(stage) + json.dumps(stage.config()) + str(stage.model_dump())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": KEY},
        {"options": [{"token": KEY}]},
        {"api_url": f"https://rerank.example/?api_key={KEY}"},
        {"api_key": {"env": KEY + "-x"}},
        {KEY + "-x": 1},
        [KEY],
    ],
)
def test_a_key_that_is_written_down_is_refused(arguments):
    """Wherever it is, it is refused before anything is opened, and not repeated."""
    with pytest.raises(ConfigError, match="arguments: ") as caught:
        PymilvusModel(function="JinaRerankFunction", arguments=arguments)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("tei_rerank_function", {}, "function: .*did you mean 'TEIRerankFunction'"),
        ("BaseRerankFunction", {}, "no 'BaseRerankFunction'; .*known are BGERerankFunction|did you mean"),
        ("os:system", {}, "function: must match"),
        (
            "TEIRerankFunction",
            {"api_url": "x", "api_uri": "x"},
            "arguments: got an unexpected keyword",
        ),
        ("TEIRerankFunction", {}, "arguments: missing a required argument: 'api_url'; TEIRerankFunction takes api_url"),
        (
            "TEIRerankFunction",
            {"api_url": [{"of": {"env": "EMPTY"}}]},
            r"api_url\[0\].of: the environment variable EMPTY",
        ),
        ("CrossEncoderRerankFunction", {"model_name": "/"}, "cannot be created: .* use the stage `cross_encoder`"),
    ],
)
def test_what_cannot_be_opened_is_reported(monkeypatch, function, arguments, message):
    """A function that the library does not export, wrong arguments, an empty variable, and a model that is not one."""
    monkeypatch.setenv("EMPTY", "  \n")
    with pytest.raises((ConfigError, StageError), match=message):
        PymilvusModel(function=function, arguments=arguments).open()


def test_its_configuration_builds_it_again():
    """The configuration is plain data that survives JSON, and the given mapping may change afterwards."""
    given = {"model_name": "m", "api_key": {"env": "MY_JINA_KEY"}, "deep": {"a": [1, {"b": None}]}}
    stage = PymilvusModel(function="JinaRerankFunction", arguments=given, top_k=3)
    data = json.loads(json.dumps(stage.config()))
    given["deep"]["a"].append(2)
    assert data.pop("type") == "pymilvus_model"
    assert data["arguments"]["deep"] == {"a": [1, {"b": None}]}
    assert PymilvusModel(**data) == stage


def test_a_missing_package_is_named_and_not_installed(monkeypatch):
    """The library would run pip; the stage says what to install, and other users in the process are not affected."""
    ran = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, **_: ran.append(command))
    monkeypatch.setitem(sys.modules, "cohere", None)
    stage = PymilvusModel(function="CohereRerankFunction", arguments={"api_key": {"env": "PATH"}})
    with pytest.raises(StageError, match=r"needs the package 'cohere', .*install it with: pip install \"cohere\""):
        stage.open()
    assert ran == []
    with pytest.raises(ImportError):
        library.CohereRerankFunction(api_key="x")
    assert ran == ["pip install -q cohere"]
