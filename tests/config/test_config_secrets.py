"""A secret at a wrong place of a configuration is in no message, and in no cause of one."""

from __future__ import annotations

import traceback

import pytest

from milvus_pipeline import ConfigError, Pipeline, RetrySettings
from milvus_pipeline.config.file import parse_config, read_config
from milvus_pipeline.errors import dotted, looks_like_a_key
from milvus_pipeline.problems import kind_of

KEY = "sk-FAKE-abcdef1234567890"


def problem(fields: str) -> str:
    """Return the error message of a hosted stage with these fields; no traceback contains the secret."""
    text = "stages:\n  - type: cohere\n" + "".join(f"    {line}\n" for line in fields.splitlines())
    return message_of(text).removeprefix("x.yaml: ").removeprefix("stages[0]")


def message_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.yaml")
    printed = "".join(traceback.format_exception(caught.value))
    assert KEY[:8] not in printed
    assert KEY[-8:] not in printed
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (f"headers: 'Authorization: Bearer {KEY}'", ".headers: must be a mapping of keys to values, got a string"),
        (f"headers: ['Authorization: Bearer {KEY}']", ".headers: must be a mapping of keys to values, got a list"),
        (f"api_key_env: [{KEY}]", ".api_key_env: must be a string, got a list"),
        (f"api_key_env: {{env: {KEY}}}", ".api_key_env: must be a string, got a mapping"),
        (f"api_key_env: {{{KEY}: }}", ".api_key_env: must be a string, got a mapping"),
        ("api_key_env: 123456789012", ".api_key_env: must be a string, got a number"),
        (f"base_url: [https://user:{KEY}@host/]", ".base_url: must be a string, got a list"),
        (f"base_url: {{url: 'https://user:{KEY}@host/'}}", ".base_url: must be a string, got a mapping"),
        (f"model: {{env: {KEY}}}", ".model: must be a string, got a mapping"),
        (f"retry: {KEY}", ".retry: must be a mapping of keys to values, got a string"),
        (f"max_concurrency: {KEY}", ".max_concurrency: must be a whole number, got a string"),
        (f"request_timeout: {{env: {KEY}}}", ".request_timeout: must be a number, got a mapping"),
        (f"on_error: {KEY}", ".on_error: must be 'raise', 'skip' or {fallback: STAGE}, got a string"),
        (f"{KEY}: 1", ".…: unknown key; known are api_key_env, "),
        (f"retry: {{{KEY}: 1}}", ".retry.…: unknown key; known are "),
        (f"model: ${{{KEY}}}", ".model: the text in ${…} is not the name of a variable"),
        (f"model: !{KEY} x", ".model: begins with `!`, which makes it a tag in YAML; put it in quotes"),
        (f"{KEY}: 1\n{KEY}: 2", ".…: duplicate key; remove one of them"),
        (f"type2: x\ntype: [{KEY}]", ".type: duplicate key; remove one of them"),
    ],
)
def test_a_value_of_a_wrong_kind_is_reported_by_its_kind(fields, expected):
    """A wrong value is reported with place, line and kind; neither it nor a key that may be a secret is shown."""
    message = problem(fields)
    assert message.startswith(expected)
    assert message.endswith(tuple(f" (line {number})" for number in (3, 4)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (f"headers: {{Authorization: Bearer: {KEY}}}", "expected ',' or '}', but got ':' (line 3, column 36)"),
        (f'headers:\n  Authorization: "Bearer {KEY}\n  x: 1', "found unexpected end of stream (line 6, column 1)"),
        (f"headers: {{X: ${{{KEY}}}}}", "(line 3, column 19); within { } and [ ], put ${VARIABLE} in quotes"),
        (f"model: *{KEY}", "found undefined alias '…' (line 3, column 12)"),
        (f"model: !!{KEY} x", "begins with `!`"),
        (f"model: [{KEY}", "expected ',' or ']', but got '<stream end>' (line 4, column 1)"),
    ],
)
def test_invalid_yaml_is_reported_by_its_place(fields, expected):
    """Invalid YAML is reported with line and column, but without the line itself."""
    assert expected in problem(fields)


def test_a_type_of_a_wrong_kind_is_reported_by_its_kind():
    """A stage type that is not a string is reported by its kind."""
    assert message_of(f"stages: [{{type: [{KEY}]}}]").endswith("must be the name of a stage, got a list (line 1)")


def test_a_file_that_is_not_text_has_no_cause(tmp_path):
    """The error about a file that is not UTF-8 keeps none of its bytes."""
    path = tmp_path / "x.yaml"
    path.write_bytes(KEY.encode() + b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text") as caught:
        read_config(path)
    assert caught.value.__cause__ is None


def test_plain_data_is_checked_like_a_file():
    """Errors in a mapping contain no secret either."""
    with pytest.raises(ConfigError) as caught:
        Pipeline.from_config({"stages": [{"type": "cohere", "headers": KEY, KEY: 1}]})
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_only_what_looks_like_a_key_is_shown():
    """Messages show names of fields and headers, but no long ones and none with many digits."""
    for name in ("top_k", "x", "bm25_k1", "INT64", "X-Trace-Id", "max_tokens_per_doc", "_x"):
        assert looks_like_a_key(name)
        assert dotted((name, 1)) == f"{name}[1]"
    for name in (KEY, "a b", "", "x" * 41, "FAKE1234567890", "ключ", "sk-1"):
        assert not looks_like_a_key(name)
        assert dotted((0, name, "x")) == "[0].….x"


def test_kinds_have_names():
    """kind_of names kinds, and shows short numbers and booleans."""
    values = ["x", [1], (1,), {}, None, 7, 2.5, True, 123456789, 0.123456789, {1}]
    kinds = "a string, a list, a list, a mapping, nothing, 7, 2.5, True, a number, a number, a set"
    assert ", ".join(map(kind_of, values)) == kinds


@pytest.mark.parametrize("field", ["attempts", "min_wait", "max_wait"])
@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_not_a_number(field, value):
    """A boolean in place of a number is refused, in YAML and in Python."""
    assert problem(f"retry: {{{field}: {str(value).lower()}}}").startswith(
        f".retry.{field}: must not be {value}".lower()
    )
    with pytest.raises(ValueError, match="must not be"):
        RetrySettings(**{field: value})
