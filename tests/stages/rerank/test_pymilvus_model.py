"""The pymilvus_model stage, with the library's own functions: on small checkpoints, and over real sockets."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pymilvus.model import reranker as library
from pymilvus.model.reranker import jev, jinaai

from milvus_pipeline import (
    ConfigError,
    Context,
    Deadline,
    DeadlineError,
    Hit,
    Query,
    RerankJob,
    SearchResult,
    StageError,
)
from milvus_stages.rerank.pymilvus_model import PymilvusModel

KEY = "jina_0123456789abcdefghij"
VARIABLES = (
    "CO_API_KEY",
    "COHERE_API_KEY",
    "VOYAGE_API_KEY",
    "VOYAGE_API_KEY_PATH",
    "JINAAI_API_KEY",
    "TYPESAFE_API_KEY",
)


class Service:
    """What a rerank service answers; ``reply`` takes the request's JSON and returns status and body."""

    def __init__(self, reply):
        self.reply, self.url, self.requests, self.headers = reply, "", [], []


@contextmanager
def service(reply):
    """A service on a free port, for as long as the block lasts."""
    served = Service(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append(data)
            served.headers.append(dict(self.headers))
            status, body = served.reply(data)
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def opened(function, top_k=None, **arguments):
    """A stage, open for as long as the block lasts."""
    stage = PymilvusModel(function=function, arguments=arguments, top_k=top_k)
    stage.open()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    """No key of this machine is in a test."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def tei_reply(data):
    """What TEI answers: longer texts are the better ones."""
    scored = [{"index": i, "score": len(text) / 100, "text": text} for i, text in enumerate(data["texts"])]
    return 200, sorted(scored, key=lambda one: -one["score"])


def jina_reply(echo):
    """What Jina answers, with the documents as ``echo`` writes them."""

    def reply(data):
        scored = [
            {"index": i, "relevance_score": len(text) / 100, **echo(text)} for i, text in enumerate(data["documents"])
        ]
        return 200, {"results": sorted(scored, key=lambda one: -one["relevance_score"])}

    return reply


def results_for(queries, documents):
    """A result for each query with these documents as hits."""
    return [SearchResult(Query(query), [Hit(i, text, 0.0) for i, text in enumerate(documents)]) for query in queries]


def local(kind, request):
    """The class and the arguments of a function on a small checkpoint."""
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
    with opened(function, **arguments) as stage:
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
    with opened(function, top_k=4, **arguments) as stage:
        together = stage.process(given, Context(Deadline(), 3))
        alone = [stage.process([result], Context(Deadline(), 1))[0] for result in given]
        asynchronous = asyncio.run(stage.aprocess(given, Context(Deadline(), 3)))
    assert together == alone == asynchronous
    assert all(len(result) == 4 and "pymilvus_model" in result.hits[0].scores for result in together)


def test_a_model_that_cannot_be_loaded_is_told_with_its_cause(tmp_path):
    """What the function says of it reaches the error, and its own exception is the cause."""
    with pytest.raises(StageError, match="CrossEncoderRerankFunction cannot be made: ") as caught:
        PymilvusModel(function="CrossEncoderRerankFunction", arguments={"model_name": str(tmp_path)}).open()
    assert caught.value.__cause__ is not None


# -- services ----------------------------------------------------------------------------------------------------


def test_tei_answers_for_five_and_the_others_come_last():
    """Documents that the function cuts off are kept, unscored and in their order, and the report says so."""
    documents = ["a" * length for length in (3, 9, 1, 7, 5, 8, 2)]
    context = Context(Deadline(), 1)
    with service(tei_reply) as tei, opened("TEIRerankFunction", api_url=tei.url) as stage:
        (result,) = stage.process(results_for(["plum"], documents), context)
    assert [hit.id for hit in result] == [1, 5, 3, 4, 0, 2, 6]
    assert [hit.scores.get("pymilvus_model") for hit in result] == [0.09, 0.08, 0.07, 0.05, 0.03, None, None]
    (warning,) = context.warnings[0]
    assert "TEIRerankFunction returned 5 of 7 documents" in warning
    assert "use the stage `tei`" in warning
    assert tei.requests[0]["texts"] == documents


def test_few_documents_are_ranked_without_a_warning():
    """What the function answers in full needs no word."""
    context = Context(Deadline(), 1)
    with service(tei_reply) as tei, opened("TEIRerankFunction", api_url=tei.url) as stage:
        (result,) = stage.process(results_for(["plum"], ["a", "abc", "ab"]), context)
    assert [hit.id for hit in result] == [1, 2, 0]
    assert context.warnings == [[]]


def test_blank_documents_are_not_sent():
    """They rank last without a score, and the report counts them; where all are blank nothing is sent at all."""
    context = Context(Deadline(), 1)
    with service(tei_reply) as tei, opened("TEIRerankFunction", api_url=tei.url) as stage:
        (result,) = stage.process(results_for(["plum"], ["", "a", " \n", "ab"]), context)
        (blank,) = stage.process(results_for(["plum"], ["", " "]), Context(Deadline(), 1))
    assert [hit.id for hit in result] == [3, 1, 0, 2]
    assert context.warnings == [["2 of 4 documents are blank; ranked last, without a score"]]
    assert context.details == [{"documents_blank": 2}]
    assert [hit.scores for hit in blank] == [{}, {}]
    assert [request["texts"] for request in tei.requests] == [["a", "ab"]]


def test_jina_gets_the_key_of_the_environment(monkeypatch):
    """The value of the variable goes into the header, without blanks around it, and all documents are asked for."""
    monkeypatch.setenv("MY_JINA_KEY", f" {KEY}\n")
    with service(jina_reply(lambda text: {"document": {"text": text}})) as jina:
        monkeypatch.setattr(jinaai, "API_URL", jina.url)
        with opened("JinaRerankFunction", api_key={"env": "MY_JINA_KEY"}) as stage:
            ranked = stage("plum", ["a", "abc", "ab"], top_k=2)
    assert [(one.index, one.score) for one in ranked] == [(1, 0.03), (2, 0.02)]
    assert jina.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert jina.requests[0]["top_n"] == 3


@pytest.mark.parametrize("echo", [lambda text: {"document": text}, lambda text: {}])
def test_a_reply_that_jinas_function_does_not_read_names_the_stage_to_take(monkeypatch, echo):
    """A documented reply that the function crashes on is explained."""
    monkeypatch.setenv("JINAAI_API_KEY", KEY)
    with service(jina_reply(echo)) as jina:
        monkeypatch.setattr(jinaai, "API_URL", jina.url)
        with opened("JinaRerankFunction") as stage, pytest.raises(StageError, match="use the stage `jina`") as caught:
            stage("plum", ["a red plum"])
    assert str(caught.value).startswith("JinaRerankFunction failed: ")


def test_jev_leaves_out_what_it_is_not_answered(monkeypatch):
    """A document that the service drops is unscored, and the report counts those that are not."""
    monkeypatch.setenv("TYPESAFE_API_KEY", KEY)
    context = Context(Deadline(), 1)
    with service(lambda data: (200, {"answers": {"d0": {"noul": 0.2}, "d2": {"noul": 0.9}}})) as answering:
        monkeypatch.setattr(jev, "API_URL", answering.url)
        with opened("JevRerankFunction") as stage:
            (result,) = stage.process(results_for(["plum"], ["a", "b", "c"]), context)
    assert [hit.id for hit in result] == [2, 0, 1]
    assert "JevRerankFunction returned 2 of 3 documents" in context.warnings[0][0]


def test_cohere_fails_with_the_stage_to_take(monkeypatch):
    """The function is made with today's SDK, and its first call says what to use instead."""
    monkeypatch.setenv("CO_API_KEY", KEY)
    with opened("CohereRerankFunction") as stage, pytest.raises(StageError) as caught:
        stage("plum", ["a red plum"])
    assert "return_documents" in str(caught.value)
    assert "cannot run with today's SDK of Cohere: use the stage `cohere`" in str(caught.value)
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
    answer = [{"text": "", **result} for result in results]
    with (
        service(lambda data: (200, answer)) as tei,
        opened("TEIRerankFunction", api_url=tei.url) as stage,
        pytest.raises(StageError, match=f"TEIRerankFunction gave {says}"),
    ):
        stage("plum", ["a", "b"])


def test_a_query_that_fails_does_not_spoil_the_others():
    """Of three queries the second fails; the others are ranked."""
    replies = iter([tei_reply, lambda data: (429, {"error": "no free slot"}), tei_reply])
    context = Context(Deadline(), 3)
    with (
        service(lambda data: next(replies)(data)) as tei,
        opened("TEIRerankFunction", api_url=tei.url) as stage,
    ):
        results = stage.process(results_for(["one", "two", "three"], ["a", "ab"]), context)
    assert list(context.failures) == [1]
    assert "RuntimeError: no free slot; " in str(context.failures[1])
    assert [[hit.id for hit in result] for result in results] == [[1, 0], [0, 1], [1, 0]]


def test_a_reply_that_is_not_json_names_the_stage_to_take():
    """An HTML page of a gateway is told, with its cause."""
    with (
        service(lambda data: (502, b"<html>bad gateway</html>")) as tei,
        opened("TEIRerankFunction", api_url=tei.url) as stage,
        pytest.raises(StageError, match=r"JSONDecodeError: .*hides the status: use the stage `tei`") as caught,
    ):
        stage("plum", ["a"])
    assert type(caught.value.__cause__).__name__ == "JSONDecodeError"


# -- what no message carries -------------------------------------------------------------------------------------


DOCUMENT = 'He said "the plum is red",\nand left for München by the early train.'


@pytest.mark.parametrize(
    "message",
    [
        f"cannot read: {DOCUMENT}",
        f"cannot read: {json.dumps([DOCUMENT])}",
        f"cannot read: {[DOCUMENT]!r}",
        f"cannot read: …{DOCUMENT[-25:]}",
        "x" * 400 + DOCUMENT,
    ],
)
def test_no_error_carries_a_document(message):
    """A message that repeats one, whole or in part, plain or escaped, is left out, and so is the exception with it."""
    with (
        service(lambda data: (422, {"error": message})) as tei,
        opened("TEIRerankFunction", api_url=tei.url) as stage,
        pytest.raises(StageError, match="TEIRerankFunction failed: RuntimeError: ") as caught,
    ):
        stage("plum", [DOCUMENT, "another"])
    error = caught.value
    assert not any(part in str(error) for part in ("plum", "nchen", "early train"))
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("given", [{"api_key": {"env": "MY_JINA_KEY"}}, {}])
@pytest.mark.parametrize("repeated", [KEY, KEY[:9], KEY[5:14] + "..."])
def test_no_error_carries_a_key(monkeypatch, given, repeated):
    """Of a key that a service repeats, in whole or in part, nothing reaches the message or the cause."""
    monkeypatch.setenv("MY_JINA_KEY" if given else "JINAAI_API_KEY", KEY)
    with service(lambda data: (401, {"detail": f"Invalid key {repeated} given"})) as jina:
        monkeypatch.setattr(jinaai, "API_URL", jina.url)
        with opened("JinaRerankFunction", **given) as stage, pytest.raises(StageError) as caught:
            stage("plum", ["a red plum"])
        assert KEY not in repr(stage) + str(stage) + json.dumps(stage.config()) + str(stage.model_dump())
    assert "Invalid key [key]" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_key_that_no_header_takes_is_not_repeated(monkeypatch):
    """The HTTP client writes the whole header into its message, with the line break escaped; ours hides it."""
    monkeypatch.setenv("JINAAI_API_KEY", "first_half_of_it\nrest")
    with opened("JinaRerankFunction") as stage, pytest.raises(StageError, match="InvalidHeader: ") as caught:
        stage("plum", ["a red plum"])
    assert "first_half" not in str(caught.value)
    assert "rest" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_key_in_voyages_file_is_hidden_too(monkeypatch, tmp_path):
    """The file that VOYAGE_API_KEY_PATH names holds a key, and so no message repeats what it holds."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("VOYAGE_API_KEY_PATH", str(tmp_path / "key"))
    with (
        service(lambda data: (400, {"error": f"what is {KEY}?"})) as tei,
        opened("TEIRerankFunction", api_url=tei.url) as stage,
        pytest.raises(StageError, match=r"what is \[key\]\?"),
    ):
        stage("plum", ["a"])


def test_voyage_without_a_key_says_where_it_looks():
    """Its SDK misses the key, at whatever point, and the error names the variable."""
    with (
        pytest.raises(StageError, match="; set VOYAGE_API_KEY_PATH or VOYAGE_API_KEY, or give `arguments: "),
        opened("VoyageRerankFunction") as stage,
    ):
        stage("plum", ["a red plum"])


# -- keys and the environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_variable_that_is_not_set_is_named(monkeypatch, value):
    """A missing and a blank variable are found when the stage opens."""
    monkeypatch.delenv("MY_JINA_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_JINA_KEY", value)
    stage = PymilvusModel(function="JinaRerankFunction", arguments={"api_key": {"env": "MY_JINA_KEY"}})
    with pytest.raises(StageError, match=r"arguments.api_key: the environment variable MY_JINA_KEY is not set"):
        stage.open()
    assert not stage.is_open


@pytest.mark.parametrize(
    ("function", "variable"),
    [("JinaRerankFunction", "JINAAI_API_KEY"), ("JevRerankFunction", "TYPESAFE_API_KEY")],
)
def test_a_function_without_a_key_says_where_it_looks(function, variable):
    """The error names the variable that the function reads, and the argument."""
    with pytest.raises(StageError, match=rf"{function} cannot be made: .*; set {variable}, or give `arguments: "):
        PymilvusModel(function=function).open()


@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": KEY},
        {"apiKey": KEY},
        {"hf_token": KEY},
        {"password": 83475834},
        {"client_secret": [KEY]},
        {"options": {"headers": {"Authorization": KEY}}},
        {"options": [{"token": KEY}]},
        {"api_url": f"https://me:{KEY}@rerank.example"},
        {"api_url": f"https://rerank.example/?api_key={KEY}"},
        {"api_key": {"env": KEY + "-x"}},
        {"api_key": {"env": [KEY]}},
        {"api_key": {"env": "A", "or": KEY}},
        {KEY + "-x": 1},
        KEY,
        [KEY],
    ],
)
def test_a_key_that_is_written_down_is_refused(arguments):
    """Wherever it stands, it is refused before anything is opened, and not repeated."""
    with pytest.raises(ConfigError, match="arguments: ") as caught:
        PymilvusModel(function="JinaRerankFunction", arguments=arguments)
    assert KEY not in str(caught.value)
    assert str(83475834) not in str(caught.value)


def test_what_only_looks_like_a_key_is_taken():
    """Numbers of tokens, tokenizers, switches and plain addresses are no secrets."""
    arguments = {
        "max_tokens_per_doc": 512,
        "tokenizer_name": "bert",
        "use_auth_token": False,
        "api_key": None,
        "api_url": "http://localhost:8080/v1?model=m",
    }
    assert PymilvusModel(function="TEIRerankFunction", arguments=arguments).arguments == arguments


def test_the_environment_is_asked_on_every_level(monkeypatch):
    """A variable that is named inside lists and mappings is read like one on top."""
    monkeypatch.setenv("MY_URL", "")
    stage = PymilvusModel(function="TEIRerankFunction", arguments={"api_url": [{"of": {"env": "MY_URL"}}]})
    with pytest.raises(StageError, match=r"arguments.api_url\[0\].of: the environment variable MY_URL is not set"):
        stage.open()


# -- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["pymilvus.model.reranker.TEIRerankFunction", "os:system", "", 3, None, ["x"]])
def test_a_function_is_a_name_and_no_path(function):
    """Nothing but a class name is taken."""
    with pytest.raises(ConfigError, match=r"function: must be the name of a class of pymilvus\.model\.reranker"):
        PymilvusModel(function=function)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("BGEReranker", "did you mean 'BGERerankFunction'"),
        ("tei_rerank_function", "did you mean 'TEIRerankFunction'"),
        ("zzz", "known are BGERerankFunction, CohereRerankFunction"),
        ("BaseRerankFunction", "no 'BaseRerankFunction'"),
        ("jinaai", "no 'jinaai'"),
    ],
)
def test_only_rerank_functions_that_the_library_exports_are_taken(function, says):
    """Another name is refused when the stage opens, with the nearest one that there is."""
    with pytest.raises(StageError, match=says):
        PymilvusModel(function=function).open()


def test_the_names_of_arguments_are_checked():
    """A misspelt argument and a missing one are told before the function is made."""
    with pytest.raises(StageError, match=r"arguments.api_uri: TEIRerankFunction .*; did you mean 'api_url'\?"):
        PymilvusModel(function="TEIRerankFunction", arguments={"api_uri": "http://localhost"}).open()
    with pytest.raises(StageError, match="arguments: TEIRerankFunction needs 'api_url'"):
        PymilvusModel(function="TEIRerankFunction").open()


@pytest.mark.parametrize("value", [object(), {1: "a"}, float("nan"), b"bytes", {"set"}])
def test_arguments_are_plain_data(value):
    """What YAML could not hold is refused."""
    with pytest.raises(ConfigError, match="arguments: x: "):
        PymilvusModel(function="TEIRerankFunction", arguments={"x": value})


def test_its_configuration_builds_it_again():
    """The configuration is plain data that survives JSON, and what was given may change afterwards."""
    given = {"model_name": "m", "api_key": {"env": "MY_JINA_KEY"}, "deep": {"a": [1, {"b": None}]}}
    stage = PymilvusModel(function="JinaRerankFunction", arguments=given, top_k=3)
    data = json.loads(json.dumps(stage.config()))
    given["deep"]["a"].append(2)
    assert data == {
        "type": "pymilvus_model",
        "function": "JinaRerankFunction",
        "arguments": {"model_name": "m", "api_key": {"env": "MY_JINA_KEY"}, "deep": {"a": [1, {"b": None}]}},
        "top_k": 3,
    }
    del data["type"]
    assert PymilvusModel(**data) == stage


# -- packages ----------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_and_not_installed(monkeypatch):
    """The library would run pip; the stage says what to install, and others in the process are served as before."""
    ran = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, **_: ran.append(command))
    monkeypatch.setitem(sys.modules, "cohere", None)
    stage = PymilvusModel(function="CohereRerankFunction", arguments={"api_key": {"env": "PATH"}})
    with pytest.raises(StageError, match='cohere is not installed; install it with: pip install "cohere"'):
        stage.open()
    assert ran == []
    with pytest.raises(ImportError):
        library.CohereRerankFunction(api_key="x")
    assert ran == ["pip install -q cohere"]


def test_importing_loads_and_starts_nothing():
    """The stage's module imports no library, and opening a stage on the library starts no process."""
    script = """
import sys
from milvus_stages.rerank.pymilvus_model import PymilvusModel
assert not {"pymilvus", "torch", "transformers", "requests"} & set(sys.modules)
sys.addaudithook(lambda event, given: sys.exit(event) if event in ("subprocess.Popen", "os.system") else None)
stage = PymilvusModel(function="TEIRerankFunction", arguments={"api_url": "http://localhost"})
stage.open()
stage.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -- time and threads --------------------------------------------------------------------------------------------


def test_a_closed_stage_says_so():
    """A stage that is not open is no crash."""
    with pytest.raises(StageError, match="pymilvus_model is not open"):
        PymilvusModel(function="TEIRerankFunction").score("plum", ["a"])


def test_one_call_is_under_way_at_a_time():
    """Four threads share a stage, and the service never has two requests at once."""
    under_way, most, lock = 0, 0, threading.Lock()

    def reply(data):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return tei_reply(data)

    with (
        service(reply) as tei,
        opened("TEIRerankFunction", api_url=tei.url) as stage,
        ThreadPoolExecutor(4) as pool,
    ):
        scores = list(pool.map(lambda number: stage.score("plum", ["a" * number]), range(1, 9)))
    assert most == 1
    assert scores == [[number / 100] for number in range(1, 9)]


def test_time_that_is_used_up_ends_the_work():
    """A deadline that has come stops the stage before its first call."""
    with (
        opened("TEIRerankFunction", api_url="http://127.0.0.1:9") as stage,
        pytest.raises(TimeoutError, match="raise `timeout`"),
    ):
        stage.score_batch([RerankJob("plum", ["sky"])], Context(Deadline.after(0.0), 1))


def test_a_query_that_was_answered_in_time_is_kept():
    """Where the time is up between two queries, the first keeps its scores and the second fails."""
    context = Context(Deadline.after(0.1), 2)

    def reply(data):
        while not context.deadline.expired:
            time.sleep(0.01)
        return tei_reply(data)

    with service(reply) as tei, opened("TEIRerankFunction", api_url=tei.url) as stage:
        scores = stage.score_batch([RerankJob("one", ["a"]), RerankJob("two", ["a"])], context)
    assert scores[0] == [0.01]
    assert list(context.failures) == [1]
    assert isinstance(context.failures[1], DeadlineError)
    assert len(tei.requests) == 1


def test_waiting_for_another_call_ends_with_the_deadline():
    """A call that has no timeout holds up others for no longer than they have time."""
    arrived, go = threading.Event(), threading.Event()

    def reply(data):
        arrived.set()
        go.wait(30)
        return tei_reply(data)

    with (
        service(reply) as tei,
        opened("TEIRerankFunction", api_url=tei.url) as stage,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(stage.score, "plum", ["a"])
        assert arrived.wait(30)
        try:
            with pytest.raises(DeadlineError, match="while another call of TEIRerankFunction was under way"):
                stage.score_batch([RerankJob("plum", ["a"])], Context(Deadline.after(0.1), 1))
        finally:
            go.set()
        assert first.result(30) == [0.01]
