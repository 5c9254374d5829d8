"""What the pymilvus_model stage keeps from errors and configurations (keys, documents), and from running (pip)."""

import json
import subprocess
import sys
from base64 import b64encode
from contextlib import closing
from urllib.parse import quote

import pytest
from pymilvus.model import reranker as library
from pymilvus.model.reranker import jinaai

from milvus_pipeline import ConfigError, StageError
from milvus_stages.rerank.pymilvus_model import PymilvusModel
from support.standins import StandIn

KEY = "jina_0123456789abcdefghij"
VARIABLES = (
    "CO_API_KEY",
    "COHERE_API_KEY",
    "VOYAGE_API_KEY",
    "VOYAGE_API_KEY_PATH",
    "JINAAI_API_KEY",
    "TYPESAFE_API_KEY",
)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    """No key of this machine is in a test."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def tei(server: StandIn) -> PymilvusModel:
    """A stage on the function for TEI."""
    return PymilvusModel(function="TEIRerankFunction", arguments={"api_url": server.url})


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
        StandIn("tei") as server,
        closing(tei(server)) as stage,
        pytest.raises(StageError, match="TEIRerankFunction failed: RuntimeError") as caught,
    ):
        server.always(server.error(422, message))
        stage("plum", [DOCUMENT, "another"])
    error = caught.value
    assert not any(part in str(error) for part in ("plum", "nchen", "early train"))
    assert error.__cause__ is None
    assert error.__context__ is None


ASKED = "who left for the south by the late train?"


def noted(text: str) -> Exception:
    error = ValueError("x")
    error.add_note(text)
    return error


def grouped(text: str) -> Exception:
    return ExceptionGroup("g", [ValueError("y"), noted(text)])


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise TypeError("no words")


def failing(monkeypatch, error: Exception) -> StageError:
    """What the stage raises where its function raises this."""
    monkeypatch.setenv("MY_JINA_KEY", KEY)

    def fail(self, query, documents, top_k=5):
        raise error

    monkeypatch.setattr(library.JinaRerankFunction, "__call__", fail)
    stage = PymilvusModel(function="JinaRerankFunction", arguments={"api_key": {"env": "MY_JINA_KEY"}})
    with closing(stage), pytest.raises(StageError) as caught:
        stage(ASKED, [DOCUMENT, "another"])
    assert caught.value.__context__ is None
    return caught.value


@pytest.mark.parametrize("made", [ValueError, noted, grouped])
@pytest.mark.parametrize(
    "text", [ASKED, quote(ASKED), DOCUMENT, quote(DOCUMENT), KEY, b64encode(KEY.encode()).decode()]
)
def test_no_cause_carries_a_key_or_a_text(monkeypatch, made, text):
    """Neither in its message, nor in its notes, nor in the exceptions of a group; the query is a text, too."""
    error = failing(monkeypatch, made(f"cannot use {text} here"))
    assert error.__cause__ is None
    assert text not in str(error)
    kept = failing(monkeypatch, made("cannot use it"))
    assert kept.__cause__ is not None


def test_an_exception_that_cannot_be_told_is_named(monkeypatch):
    """By its class; it is no cause, since nobody knows what it holds."""
    error = failing(monkeypatch, MuteError())
    assert str(error).startswith("JinaRerankFunction failed: MuteError; ")
    assert error.__cause__ is None


@pytest.mark.parametrize("given", [{"api_key": {"env": "MY_JINA_KEY"}}, {}])
@pytest.mark.parametrize("repeated", [KEY, KEY[:9], KEY[5:14] + "..."])
def test_no_error_carries_a_key(monkeypatch, given, repeated):
    """Of a key that a service repeats, in whole or in part, nothing reaches the message or the cause."""
    monkeypatch.setenv("MY_JINA_KEY" if given else "JINAAI_API_KEY", KEY)
    stage = PymilvusModel(function="JinaRerankFunction", arguments=given)
    with StandIn("jina") as server, closing(stage):
        server.always(server.error(401, f"Invalid key {repeated} given"))
        monkeypatch.setattr(jinaai, "API_URL", server.url)
        with pytest.raises(StageError) as caught:
            stage("plum", ["a red plum"])
        assert KEY not in repr(stage) + str(stage) + json.dumps(stage.config()) + str(stage.model_dump())
    assert "Invalid key" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_key_that_no_header_takes_is_not_repeated(monkeypatch):
    """The HTTP client writes the whole header into its message, with the line break escaped; ours hides it."""
    monkeypatch.setenv("JINAAI_API_KEY", "first_half_of_it\nrest")
    with (
        closing(PymilvusModel(function="JinaRerankFunction")) as stage,
        pytest.raises(StageError, match="InvalidHeader") as caught,
    ):
        stage("plum", ["a red plum"])
    assert "first_half" not in str(caught.value)
    assert "rest" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_key_in_voyages_file_is_hidden_too(monkeypatch, tmp_path):
    """The file that VOYAGE_API_KEY_PATH names holds a key, and so no message repeats what it holds."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("VOYAGE_API_KEY_PATH", str(tmp_path / "key"))
    with (
        StandIn("tei") as server,
        closing(tei(server)) as stage,
        pytest.raises(StageError) as caught,
    ):
        server.always(server.error(400, f"what is {KEY}?"))
        stage("plum", ["a"])
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_voyage_without_a_key_says_where_it_looks():
    """Its SDK misses the key, at whatever point, and the error names the variable."""
    with (
        closing(PymilvusModel(function="VoyageRerankFunction")) as stage,
        pytest.raises(StageError, match="; set VOYAGE_API_KEY_PATH or VOYAGE_API_KEY, or give `arguments: "),
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
