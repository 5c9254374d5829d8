"""Invalid fields, and servers that are down."""

from __future__ import annotations

import asyncio
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from milvus_pipeline import ConfigError, Pipeline, Query, StageError
from milvus_stages import MilvusSearch

HANG_SECONDS = 8.0
"""Far above the timeout, so that a busy machine does not matter, and below the 10 s of pymilvus."""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": 0}, "limit: must be at least 1, got 0"),
        ({"limit": 16385}, "limit: must be at most 16384"),
        ({"limit": 16000, "offset": 1000}, "limit + offset must be at most 16384, got 17000"),
        ({"offset": -1}, "offset: must be at least 0, got -1"),
        ({"limt": 3}, "limt: unknown key; did you mean 'limit'?"),
        ({"metric_type": "ip"}, "metric_type: must be 'IP', 'COSINE' or 'L2'"),
        ({"uri": "ftp://host:1"}, "uri: must be http://HOST:PORT"),
        ({"uri": "milvus"}, "uri: must be http://HOST:PORT"),
        ({"uri": "http://root:geheim@host:19530"}, "put the token (user:password, or an API key) in the environment"),
        ({"uri": "http://geheim@host:19530"}, "must not contain user and password; put the token"),
        ({"uri": "root:geheim@host:19530"}, "uri: must be http://HOST:PORT"),
        ({"uri": "http://root:geheim"}, "uri: must be http://HOST:PORT"),
        ({"uri": "http://root:geheim@[host"}, "uri: must be http://HOST:PORT"),
        ({"uri": "http://root:geheim\u2100@host:1"}, "uri: must be http://HOST:PORT"),
        ({"uri": "http://host:0"}, "uri: must be http://HOST:PORT"),
        ({"uri": "http://host:70000"}, "uri: must be http://HOST:PORT"),
        ({"uri": "http://host:19530?token=geheim"}, "without `?` or `#`; put the token"),
        ({"uri": "https://host/db#geheim"}, "without `?` or `#`; put the token"),
        ({"token_env": "root:geheim"}, "token_env: must be the name of an environment variable"),
        ({"token_env": "1geheim"}, "write the name, not the secret"),
        ({"token_env": "geheim\n"}, "write the name, not the secret"),
        ({"token_env": ""}, "write the name, not the secret"),
        ({"uri": "./x.db", "db_name": "other"}, "db_name: only servers have databases"),
        ({"params": {"nprobe": "many"}}, "params.nprobe: must be an integer from 1 to 65536, got a string"),
        ({"params": {"nprobe": True}}, "params.nprobe: must be an integer"),
        ({"params": {"ef": 3}}, "IVF_FLAT has no parameter 'ef'"),
        ({"params": {"range_filter": 0.5}}, "needs `radius`"),
        ({"metric_type": "L2", "params": {"radius": 1, "range_filter": 2}}, "for L2, range_filter (2) must be below"),
        ({"params": {"radius": float("nan")}}, "params.radius: must be a finite number"),
        ({"filter": "(year > 3"}, "'(' is never closed"),
        ({"filter": 'tag == "{t}"'}, "the placeholder {t} is inside quotes"),
        ({"filter": "x == {t}", "filter_params": {"t": None}}, "filter_params.t: must be a string, a number"),
        ({"partition_names": []}, "partition_names"),
        ({"round_decimal": 7}, "round_decimal: must be at most 6"),
        ({"retry": {"attempts": 0}}, "retry.attempts: must be at least 1, got 0"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    """Errors that can be found without a server are raised when the stage is made, and repeat no secret."""
    with pytest.raises(ConfigError) as caught:
        MilvusSearch(**{"collection": "things", **fields})
    assert message in str(caught.value)
    assert "geheim" not in "".join(traceback.format_exception(caught.value))
    assert "geheim" not in repr(caught.value)


def test_numeric_strings_become_numbers() -> None:
    """Parameters that are numeric strings, as environment variables are, become numbers."""
    stage = MilvusSearch(collection="c", params={"nprobe": "64", "radius": "0.5"})
    assert stage.params == {"nprobe": 64, "radius": 0.5}


def test_a_path_is_a_uri(tmp_path: Path) -> None:
    """A Path is kept as a string, so that it can be written to YAML."""
    assert MilvusSearch(uri=tmp_path / "x.db", collection="c").config()["uri"] == str(tmp_path / "x.db")


def test_no_text_without_a_text_field() -> None:
    """Without text_field the search provides no text, so a reranker after it is refused."""
    assert MilvusSearch(collection="c").provides() == {"hits", "text"}
    assert MilvusSearch(collection="c", text_field=None).provides() == {"hits"}


def test_the_token_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is read from the environment, without blanks around it, and appears nowhere else."""
    monkeypatch.setenv("SEARCH_TOKEN", "  root:geheim \n")
    stage = MilvusSearch(collection="c", token_env="SEARCH_TOKEN", uri="http://127.0.0.1:9", timeout=0.5)  # noqa: S106
    assert stage.token() == "root:geheim"
    with pytest.raises(StageError) as caught:
        stage.open()
    for text in (repr(stage), str(stage.config()), str(stage.model_dump()), str(caught.value)):
        assert "geheim" not in text
    monkeypatch.delenv("SEARCH_TOKEN")
    assert stage.token() == ""


def test_a_stage_that_is_not_open() -> None:
    """Calling `process` on a closed stage is a StageError with the next step."""
    from milvus_pipeline import SearchResult
    from milvus_pipeline.plugin import Context, Deadline

    with pytest.raises(StageError, match="milvus_search is not open; call open"):
        MilvusSearch(collection="c").process([SearchResult(Query("x"))], Context(Deadline(), 1))


@pytest.fixture(params=["closed", "silent"])
def down(request: pytest.FixtureRequest) -> Iterator[str]:
    """A port that refuses connections, or one that accepts them and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("given_to", ["stage", "pipeline", "call"])
def test_a_server_that_is_down_fails_within_the_timeout(down: str, given_to: str) -> None:
    """Every timeout is kept; the message names the server and what to check."""
    stage = MilvusSearch(uri=down, collection="c", timeout=0.3 if given_to == "stage" else None)
    pipeline = Pipeline([stage], timeout=0.3 if given_to == "pipeline" else None)
    timeout = 0.3 if given_to == "call" else None
    query = Query("x", vector=np.ones(3))
    for run in (
        lambda: pipeline.run(query, timeout=timeout),
        lambda: asyncio.run(pipeline.arun(query, timeout=timeout)),
    ):
        started = time.monotonic()
        with pytest.raises(StageError) as caught:
            run()
        assert time.monotonic() - started < HANG_SECONDS
        assert down in str(caught.value)
        assert "check that" in str(caught.value)
        assert not pipeline.stages[0].is_open
