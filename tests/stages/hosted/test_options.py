"""Options of a request that are secrets, the policy of retries, and addresses that have to be given."""

from __future__ import annotations

import asyncio
import json
import traceback

import pytest

from milvus_pipeline import ConfigError, Pipeline, RetrySettings, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages import TEI, Cohere, RerankAPI
from milvus_stages.hosted import FromEnv, HostedReranker, HostedRetry
from support.hosted import QUERY, QUICK, TEXTS
from support.standins import Reply, StandIn

PRIVATE = "sk-live-Zq81hT0kLm42"


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"api_key": PRIVATE}, "api_key"),
        ({"Authorization": PRIVATE}, "Authorization"),
        ({"extra": {"litellm_credential": PRIVATE}}, "extra.litellm_credential"),
        ({"extra": [{"session_token": PRIVATE}]}, r"extra\[0\].session_token"),
        ({"auth": {"value": [PRIVATE]}}, r"auth.value\[0\]"),
        ({"callback": f"https://user:{PRIVATE}@host"}, "callback"),
    ],
)
def test_a_secret_in_options_is_refused_unseen(options, place):
    """On any level, by its name; the message says where it is, and what to write instead."""
    advice = f"options: {place}: looks like a secret; .* write {{env: NAME}} instead"
    with pytest.raises(ConfigError, match=advice) as caught:
        RerankAPI(base_url="http://127.0.0.1:9", options=options)
    assert PRIVATE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["query", "documents", "top_n", "model"])
def test_what_the_stage_writes_is_no_option(name):
    """It would be overwritten in silence."""
    with pytest.raises(ConfigError, match=f"options: {name}: cannot be set here, since the stage sets it"):
        RerankAPI(base_url="http://127.0.0.1:9", options={name: "x"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["a"], "must be a mapping"),
        ({1: "a"}, "the names must be non-empty strings"),
        ({"": "a"}, "the names must be non-empty strings"),
        ({"a": object()}, "a: must be plain data"),
        ({"a": float("nan")}, "a: must be plain data"),
        ({"a": {"env": 3}}, "a: env must be the name of an environment variable"),
        ({"a": {"env": PRIVATE}}, "a: env must be the name of an environment variable"),
    ],
)
def test_options_are_plain_data(options, says):
    """What cannot be written as JSON is refused at once."""
    with pytest.raises(ConfigError, match=f"options: {says}") as caught:
        RerankAPI(base_url="http://127.0.0.1:9", options=options)
    assert PRIVATE not in "".join(traceback.format_exception(caught.value))


def test_numbers_of_tokens_are_no_secrets():
    """Nor is the name of a tokenizer."""
    options = {"max_tokens_per_doc": 512, "truncate_prompt_tokens": -1, "tokenizer": "bert", "user": None, "raw": True}
    stage = RerankAPI(base_url="http://127.0.0.1:9", options=options)
    assert stage.config()["options"] == options


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_secret_comes_from_the_environment(way, monkeypatch):
    """It is sent, on any level, but not printed, dumped or repeated in an error."""
    monkeypatch.setenv("MY_KEY", f" {PRIVATE}\n")
    options = {"api_key": FromEnv(env="MY_KEY"), "extra": {"tokens": [{"env": "MY_KEY"}]}}
    with StandIn("vllm") as server:
        stage = RerankAPI(base_url=server.url, retry=QUICK, options=options)
        pipeline_data = json.dumps(stage.config())
        assert '{"api_key": {"env": "MY_KEY"}, "extra": {"tokens": [{"env": "MY_KEY"}]}}' in pipeline_data
        failure = asked(stage, way)
        assert failure is None
        body = server.requests[-1].body
        assert (body["api_key"], body["extra"]) == (PRIVATE, {"tokens": [PRIVATE]})
        server.always(Reply(400, {"error": f"{PRIVATE[:12]} is no key"}))
        failure = asked(stage, way)
    assert "answered 400; " in str(failure)
    for shown in (repr(stage), str(stage), json.dumps(stage.config()), "".join(traceback.format_exception(failure))):
        assert PRIVATE[:8] not in shown


@pytest.mark.parametrize("value", [None, " \n"])
def test_a_secret_that_is_missing_is_reported(value, monkeypatch):
    """When the stage opens, with its place and the variable; nothing is sent."""
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with StandIn("vllm") as server:
        stage = RerankAPI(base_url=server.url, options={"extra": {"key": {"env": "MY_KEY"}}})
        with pytest.raises(StageError, match=r"options.extra.key: the environment variable MY_KEY is not set or empty"):
            stage.open()
        assert not stage.is_open
        assert server.connections == 0


def test_a_secret_written_into_yaml_is_refused_with_its_line(monkeypatch):
    """Even if it comes from the environment by YAML's `${VAR}`, which a dump would write out."""
    monkeypatch.setenv("MY_KEY", PRIVATE)
    text = "stages:\n  - type: rerank_api\n    base_url: http://h\n    options:\n      api_key: ${MY_KEY}\n"
    with pytest.raises(ConfigError, match=r"options: api_key: looks like a secret.*line 4") as caught:
        Pipeline.from_yaml(text)
    assert PRIVATE not in str(caught.value)


def asked(stage, way):
    """Score once, and return the error, or None."""

    async def main():
        await stage.aopen()
        try:
            context = Context(Deadline(), 1)
            await stage.ascore_batch([RerankJob(QUERY, list(TEXTS))], context)
            return context.failures.get(0)
        finally:
            await stage.aclose()

    if way == "async":
        return asyncio.run(main())
    try:
        stage(QUERY, TEXTS)
    except StageError as error:
        return error
    finally:
        stage.close()
    return None


# -- retries -----------------------------------------------------------------------------------------------------


def test_settings_of_any_kind_are_taken():
    """What they do not set has the defaults for services, as in YAML; a dump holds what was set."""
    given = RetrySettings(attempts=2)
    for retry in (given, {"attempts": 2}, HostedRetry(attempts=2)):
        stage = Cohere(retry=retry)
        assert stage.retry == HostedRetry(attempts=2, min_wait=0.5, max_wait=60.0)
        assert stage.config() == {"type": "cohere", "retry": {"attempts": 2}}
        assert Cohere(retry=stage.config()["retry"]) == stage
    # The defaults of RetrySettings are no defaults here, so they are kept where they are set.
    assert Cohere(retry=RetrySettings(attempts=3, min_wait=0.1)).config()["retry"] == {"attempts": 3, "min_wait": 0.1}


def test_settings_are_described_and_bounded_alike():
    """Only the defaults differ."""
    for name, field in RetrySettings.model_fields.items():
        own = HostedRetry.model_fields[name]
        assert (own.description, own.metadata, own.annotation) == (field.description, field.metadata, field.annotation)
        assert own.default > field.default
    with pytest.raises(ConfigError, match=r"retry\.attempts: must be at least 1, got 0"):
        Cohere(retry={"attempts": 0})
    with pytest.raises(ConfigError, match=r"retry: max_wait \(0\.2\) must be at least min_wait \(0\.5\)"):
        Cohere(retry=RetrySettings(max_wait=0.2))
    with pytest.raises(ConfigError, match="retry: must be a mapping of keys to values, got 3"):
        Cohere(retry=3)


# -- addresses ---------------------------------------------------------------------------------------------------


class Own(HostedReranker):
    """A plugin's service, without a public address."""

    type = "own_service"

    def payload(self, query, texts, top_n):
        """Never sent."""
        return {}


class ByKey(Own):
    """A service whose address depends on the key."""

    def address(self, key):
        """None without a key."""
        return key


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (TEI, "TEI: base_url: is missing, and has no default"),
        (RerankAPI, "RerankAPI: base_url: is missing, and has no default"),
        (Own, "Own: base_url: is not set, and the service has no public address; give the address of your server"),
    ],
)
def test_an_address_that_is_nowhere_public_must_be_given(make, says):
    """The error comes before a pipeline opens."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == says
    assert make(base_url="http://localhost:8080").base_url == "http://localhost:8080"


def test_an_address_that_is_missing_is_reported_with_its_line():
    """By `validate`, that is, when a file is read."""
    with pytest.raises(ConfigError, match=r"stages\[0\].base_url: is missing, and has no default \(line 2\)"):
        Pipeline.from_yaml("stages:\n  - type: tei\n")


def test_an_address_may_depend_on_the_key():
    """Then its lack shows when the stage opens."""
    with pytest.raises(StageError, match="own_service: base_url is not set, and the key does not tell the address"):
        ByKey().open()


def test_tei_takes_no_model():
    """The message has the reason."""
    with pytest.raises(ConfigError, match="model: tei serves the model it was started with; leave `model` out"):
        TEI(base_url="http://localhost:8080", model="x")
    assert TEI(base_url="http://localhost:8080", model=None).model is None
