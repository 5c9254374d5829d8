"""No secret and no text of a query or a document is in anything that a stage prints, logs or raises."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from milvus_pipeline import Hit, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.cli.app import app
from milvus_pipeline.config.registry import GROUP
from milvus_pipeline.plugin import Context, Deadline, Stage
from milvus_stages import MilvusSearch
from support.fake_stages import basic
from support.secret_leaks import all_logs, leaked, printed, shown
from support.specimens import DIM, TEXTS, World, specimen
from support.standins import Reply, StandIn

from .milvus_front import front

NAMES = sorted({point.name for point in entry_points(group=GROUP)})

assert basic.ListedSearch.type == "listed_search"  # registered by its import
TOKEN = "root:FAKE-token-f00ba12-9f8e"  # noqa: S105 - made up
QUESTION = "whether Ms Ann Ufford, born 12 March, is the patient of plum street"
ANSWER = "Ann Ufford of plum street has been told by the red clinic on the sixth"
VALUE = 'the value "4711-private" of a \\ filter'


@pytest.fixture(params=NAMES)
def stage(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A closed stage of each registered type, with a secret in the variable that it names."""
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    made = specimen(request.param, world)
    yield made
    while made.is_open:
        made.close()


def secrets(stage: Stage) -> list[str]:
    """The values of the environment variables that the stage names."""
    names = [value for name, value in stage.model_dump().items() if name.endswith("_env") and value]
    return [os.environ[name] for name in names]


def given(world: World, **query: Any) -> list[SearchResult]:
    """A query with a private text and with hits of private texts."""
    hits = [Hit(i, text, 0.0).ranked("search", 1 - i / 10, i + 1) for i, text in enumerate((*TEXTS, ANSWER))]
    fields = {"text": QUESTION, "vector": world.vector("red"), **query}
    return [SearchResult(Query(**fields), hits)]


def mistakes(world: World, stage: Stage) -> list[tuple[list[SearchResult], float]]:
    """Inputs that stages fail on, with the seconds that they get."""
    common = [
        (given(world), 60),
        (given(world), 1e-9),
        (given(world, text="  "), 60),
        (given(world, text=f"{QUESTION} \ud800"), 60),
        (given(world, text="", vector=None), 60),
    ]
    searches = [
        (given(world, vector=[1.0] * (DIM + 1)), 60),
        (given(world, vector=[float("nan")] * DIM), 60),
        (given(world, vector=None), 60),
        (given(world, filter="text == {v}", filter_params={"v": VALUE}), 60),
        (given(world, filter="text ==== {v}", filter_params={"v": VALUE}), 60),
        (given(world, filter=f"text ==== '{QUESTION}' )"), 60),
        (given(world, params={"nprobe": 0}), 60),
    ]
    return [*common, *(searches if "vector" in stage.requires() else [])]


def test_nothing_private_is_printed(stage: Stage, world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """By a stage that works, by one that fails on its input, in its errors, in the logs of all, on the terminal."""
    said: list[Any] = [*shown(stage)]
    failures: list[BaseException] = []
    with all_logs() as logs:
        stage.open()
        for results, seconds in mistakes(world, stage):
            context = Context(Deadline.after(seconds), len(results))
            try:
                stage.process(results, context)
            except Exception as error:
                failures.append(error)
            failures += context.failures.values()
            said += [context.warnings, context.details]
        said += shown(stage)
        stage.close()
    for error in failures:
        said += printed(error)
    out, err = capfd.readouterr()
    private = [*secrets(stage), QUESTION, ANSWER, VALUE, *(text for text in TEXTS if text)]
    assert failures or stage.type == "truncate"  # which takes whatever it is given
    assert leaked(private, [*said, *logs, out, err]) == []


def test_a_stage_that_cannot_open_repeats_no_secret(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its model or server is missing, or its key is not valid in a header."""
    private = secrets(stage)
    changes: dict[str, Any] = {"uri": "http://127.0.0.1:1", "timeout": 1.0, "tokenizer": "/no/such/folder"}
    changes |= {"arguments": {"model_name": "/no/such/bge-reranker-base"}}
    fields = type(stage).model_fields
    if "api_key_env" in fields:
        monkeypatch.setenv(stage.model_dump()["api_key_env"], f"{private[0]}\n{private[0]}")
    else:
        changes["model"] = "/no/such/folder"
    config = {name: value for name, value in stage.config().items() if name != "type"}
    broken = type(stage)(**config | {name: value for name, value in changes.items() if name in fields})
    with all_logs() as logs, pytest.raises(StageError) as caught:
        broken.open()
    out, err = capfd.readouterr()
    assert leaked(private, [*printed(caught.value), *shown(broken), *logs, out, err]) == []


# -- the token of Milvus ---------------------------------------------------------------------------------------------


def search(world: World, uri: str) -> MilvusSearch:
    return MilvusSearch(**{**world.collection, "uri": uri})


def test_the_token_reaches_the_server_and_nobody_else(
    world: World, target: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the metadata `authorization`, with every call, blocking and on an event loop."""
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    query = Query(QUESTION, vector=world.vector("red"))

    async def awaited(pipeline: Pipeline) -> SearchResult:
        result = await pipeline.arun(query)
        await pipeline.aclose()
        return result

    with front(target, token=TOKEN) as server, all_logs() as logs:
        stage = search(world, server.uri)
        with Pipeline([stage]) as pipeline:
            result = pipeline.run(query)
            said = [*shown(stage), repr(pipeline), pipeline.to_yaml(), repr(result.reports)]
        assert asyncio.run(awaited(pipeline)) == result
        sent = base64.b64encode(TOKEN.encode()).decode()
        assert [given for name, given in server.calls if name == "Search"] == [sent, sent]
        assert {given for _, given in server.calls} == {sent}
    assert len(result) == 5
    assert leaked([TOKEN], [*said, *logs, *capfd.readouterr()]) == []


@pytest.mark.parametrize("token", ["root:FAKE-another-0badc0de", None])
def test_a_token_that_is_refused(
    world: World, target: str, token: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stage fails as `unauthorized` and names the variable, though the server repeats what it was sent."""
    monkeypatch.setenv("MILVUS_TOKEN", token or "")
    with front(target, token=TOKEN) as server, all_logs() as logs, pytest.raises(StageError) as caught:
        search(world, server.uri).open()
    assert caught.value.reason_code == "unauthorized"
    assert "put the right token (user:password, or an API key) in the environment variable MILVUS_TOKEN" in str(
        caught.value
    )
    assert len(server.calls) == 1
    said = [*printed(caught.value), *logs, *capfd.readouterr()]
    assert leaked([TOKEN, *([token] if token else [])], said) == []


def test_a_token_that_is_refused_later(world: World, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is withdrawn while the stage is open fails the query, in the same words."""
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    with front(target, token=TOKEN) as server, Pipeline([search(world, server.uri)]) as pipeline:
        server.token = "root:FAKE-new"  # noqa: S105 - made up
        with pytest.raises(StageError) as caught:
            pipeline.run(Query(QUESTION, vector=world.vector("red")))
    assert caught.value.reason_code == "unauthorized"
    assert "the server refused the credentials" in str(caught.value)
    assert leaked([TOKEN, QUESTION], printed(caught.value)) == []


# -- stages within stages, and the command ---------------------------------------------------------------------------


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A configuration whose reranker fails, as does its fallback, each repeating its key and the texts; the keys."""
    with StandIn("cohere") as cohere, StandIn("jina") as jina:
        for server in (cohere, jina):
            server.always(Reply(401, {"message": f"{server.key} may not read {QUESTION} in {ANSWER}"}))
        monkeypatch.setenv("FIRST_KEY", cohere.key)
        monkeypatch.setenv("SECOND_KEY", jina.key)
        fallback = {"type": "jina", "base_url": jina.url, "api_key_env": "SECOND_KEY"}
        reranker = {"type": "cohere", "base_url": cohere.url, "api_key_env": "FIRST_KEY"}
        stages = [{"type": "listed_search", "documents": [ANSWER]}, {**reranker, "on_error": {"fallback": fallback}}]
        path = tmp_path / "failing.yaml"
        path.write_text(yaml.safe_dump({"stages": stages}))
        yield path, [cohere.key, jina.key]


def test_a_fallback_within_a_stage(failing: tuple[Path, list[str]]) -> None:
    """It is printed with the stage that it replaces, and its error with that stage's error."""
    path, keys = failing
    with all_logs() as logs, Pipeline.from_yaml(path) as pipeline:
        said = [text for stage in pipeline.stages[1:] for text in shown(stage)]
        said += [repr(pipeline), repr(pipeline.stages[1].on_error), *logs]
        (result,) = pipeline.run_batch([QUESTION], return_errors=True)
    assert result.error is not None
    said += [*printed(result.error), repr(result.reports), repr(result.reasons)]
    assert leaked([*keys, QUESTION, ANSWER], said) == []
    assert leaked(keys, [pipeline.to_yaml(), repr(result.to_dict())]) == []


def test_the_traceback_that_the_command_shows(failing: tuple[Path, list[str]]) -> None:
    """`--debug` prints whole tracebacks; the query's text is only in the result, on stdout."""
    path, keys = failing
    result = CliRunner().invoke(app, ["run", str(path), "--debug", "--query", QUESTION])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert leaked(keys, [result.stdout, result.stderr]) == []
    assert leaked([QUESTION, ANSWER], [result.stderr]) == []


def test_the_traceback_of_a_server_that_refuses(
    world: World, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus's own error is behind it, and would repeat the token."""
    monkeypatch.setenv("MILVUS_TOKEN", "root:FAKE-another-0badc0de")
    with front(target, token=TOKEN) as server:
        stages = [{"type": "encode", "model": world.encoder}, {**world.collection, "type": "milvus_search"}]
        stages[1]["uri"] = server.uri
        path = tmp_path / "refused.yaml"
        path.write_text(yaml.safe_dump({"stages": stages}))
        result = CliRunner().invoke(app, ["run", str(path), "--debug", "--query", QUESTION])
    assert result.exit_code == 1
    assert "the server refused the credentials" in result.output
    assert "Traceback" in result.output
    assert leaked(["root:FAKE-another-0badc0de", QUESTION], [result.output, result.stderr]) == []
