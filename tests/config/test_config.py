"""Configuration: the same pipeline from YAML and from Python, and every mistake reported with its place."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline import CollectionSpec, ConfigError, Pipeline
from milvus_pipeline.config.file import parse_config, to_yaml
from milvus_pipeline.config.yaml import parse_yaml
from support.fake_stages.basic import ListedSearch, WordOverlap

GOOD = """
name: words
timeout: 2.5
stages:
  - {type: listed_search}
  - {type: word_overlap, weight: 2, top_k: 3, on_error: skip}
"""


def message_of(text: str, origin: str = "configs/x.yaml") -> str:
    """Return the error message of a bad configuration."""
    with pytest.raises(ConfigError) as caught:
        parse_config(textwrap.dedent(text), origin)
    return str(caught.value)


def test_yaml_and_python_build_equal_pipelines():
    """YAML keys are the constructor's arguments, one to one."""
    built = Pipeline([ListedSearch(), WordOverlap(weight=2.0, top_k=3, on_error="skip")], name="words", timeout=2.5)
    read = Pipeline.from_yaml(GOOD)
    assert read == built
    assert read.run("red plum") == built.run("red plum")


def test_yaml_is_read_from_a_file_and_written_back(tmp_path):
    """`to_yaml` and `from_yaml` are inverse, also through a file."""
    path = tmp_path / "words.yaml"
    Pipeline.from_yaml(GOOD).to_yaml(path)
    assert Pipeline.from_yaml(path) == Pipeline.from_yaml(str(path)) == Pipeline.from_yaml(GOOD)
    assert Pipeline.from_yaml(path).to_yaml() == path.read_text()


def test_plain_data_builds_the_same_pipeline():
    """A mapping gives the same pipeline as YAML."""
    pipeline = Pipeline.from_yaml(GOOD)
    assert Pipeline.from_config(pipeline.to_config()) == pipeline


def test_the_collection_section_survives_yaml():
    """The collection section is written to YAML and read back."""
    fields = [
        {"name": "id", "dtype": "INT64", "is_primary": True},
        {"name": "vector", "dtype": "FLOAT_VECTOR", "dim": 8},
        {"name": "text", "dtype": "VARCHAR", "source": ["title", "text"]},
    ]
    pipeline = Pipeline([ListedSearch()], collection={"fields": fields})
    assert isinstance(pipeline.collection, CollectionSpec)
    assert pipeline.collection.index.index_type == "IVF_FLAT"
    assert pipeline.collection.index.metric_type == "IP"
    assert pipeline.collection.index.params == {"nlist": 128}
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30))
def test_any_text_survives_yaml(text):
    """Dollar signs, quotes, colons and the like are written and read back unchanged."""
    assert parse_yaml(to_yaml({"name": text}), environ={}).data == {"name": text}


# -- environment -------------------------------------------------------------------------------------------------


def test_variables_are_substituted():
    """${VAR} gives the environment's value, ${VAR:-default} the default if it is unset or empty."""
    text = "a: ${HOST}:${PORT:-19530}\nb: ${EMPTY:-x}\nc: ${EMPTY}\nd: $${HOST} costs $5\ne: ${NONE:-}\nf: ${U:-http://h:1/}"
    data = parse_yaml(text, environ={"HOST": "db", "EMPTY": ""}).data
    assert data == {"a": "db:19530", "b": "x", "c": "", "d": "${HOST} costs $5", "e": "", "f": "http://h:1/"}


def test_a_number_from_the_environment_is_a_number_in_a_stage(monkeypatch):
    """A variable is a string, and a field of numbers converts it."""
    monkeypatch.setenv("TOP_K", "3")
    config = parse_config("stages: [{type: listed_search}, {type: word_overlap, top_k: '${TOP_K}'}]")
    assert config.stages[1].top_k == 3


@given(st.text(max_size=40))
def test_a_value_never_changes_the_document(value):
    """A variable's value stays one string at its place, whatever is in it."""
    assert parse_yaml("a: ${V}\nb: 1", environ={"V": value}).data == {"a": value, "b": 1}


def test_every_missing_variable_is_named_among_the_other_mistakes():
    """Unset variables are reported together with other mistakes, and cause no further ones."""
    text = """
    stages:
      - {type: listed_search, name: "${NO_SUCH_A}"}
      - {type: word_overlap, top_k: "${NO_SUCH_B}", weihgt: 2}
    """
    first, second, third = message_of(text).splitlines()
    assert "stages[0].name: the environment variable NO_SUCH_A is not set" in first
    assert {"NO_SUCH_B is not set" in line for line in (second, third)} == {True, False}
    assert "unknown key; did you mean 'weight'?" in second + third


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("top_k: many", "stages[1].top_k: must be a whole number, got a string"),
        ("top_k: 0", "stages[1].top_k: must be at least 1, got 0"),
        ("top_k: 2.5", "stages[1].top_k: must be a whole number, got 2.5"),
        ("weight: [1]", "stages[1].weight: must be a number, got a list"),
        ("timeout: 0", "stages[1].timeout: must be above 0, got 0"),
        ("top_k: true", "stages[1].top_k: must not be true"),
        ("name: 7", "stages[1].name: must be a string, got 7"),
        ("on_error: ignore", "stages[1].on_error: must be 'raise', 'skip' or {fallback: STAGE}, got 'ignore'"),
        ("top_k: 1, top_n: 1", "stages[1].top_n: unknown key; did you mean 'top_k'?"),
    ],
)
def test_a_wrong_value_is_reported_with_its_bound(fields, expected):
    """The message for a wrong value has the bound, and the value or its kind."""
    text = f"stages: [{{type: listed_search}}, {{type: word_overlap, {fields}}}]"
    assert message_of(text) == f"configs/x.yaml: {expected} (line 1)"


def test_python_reports_the_same_as_yaml():
    """A constructor checks its arguments as a file's, and raises the same kind of error."""
    with pytest.raises(ConfigError) as caught:
        WordOverlap(top_k=0, wieght=2)
    assert str(caught.value).splitlines() == [
        "WordOverlap: top_k: must be at least 1, got 0",
        "WordOverlap: wieght: unknown key; did you mean 'weight'?",
    ]


def test_all_mistakes_are_reported_at_once():
    """One error has all mistakes of a file."""
    text = """
    nam: x
    stages:
      - {type: listed_serch}
      - {type: word_overlap, top_k: 0}
    """
    assert message_of(text).splitlines() == [
        "configs/x.yaml: nam: unknown key; did you mean 'name'? (line 2)",
        "configs/x.yaml: stages[0].type: no stage is named 'listed_serch'; did you mean 'listed_search'? (line 4)",
        "configs/x.yaml: stages[1].top_k: must be at least 1, got 0 (line 5)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; it needs at least a list of `stages`"),
        ("# nothing\n", "is empty; it needs at least a list of `stages`"),
        ("- a\n", "must be a mapping with a list of `stages`, got a list"),
        ("a text", "must be a mapping with a list of `stages`, got a string"),
        ("name: x", "stages: is missing, and has no default (line 1)"),
        ("stages: []", "stages: must not be empty (line 1)"),
        ("stages: 5", "stages: must be a list, got 5 (line 1)"),
        ("stages: [bge]", "stages[0]: must be a mapping with a `type`, such as {type: truncate, top_k: 5} (line 1)"),
        ("stages: [{top_k: 1}]", "stages[0]: has no `type`, the name of its stage; `milvus-pipeline stages` lists"),
        ("stages: [{type: 3}]", "stages[0].type: must be the name of a stage, got 3 (line 1)"),
        ("name: x\nname: y", "name: duplicate key; remove one of them (line 2)"),
        (
            "stages: [{type: listed_search, top_q: 1}]",
            "stages[0].top_q: unknown key; known are documents, name, on_error,",
        ),
        (
            "name: ${NO_SUCH_NAME}",
            "name: the environment variable NO_SUCH_NAME is not set; set it, or give a default: "
            "${NO_SUCH_NAME:-value} (line 1)",
        ),
        (
            "name: ${1x}",
            "name: the text in ${…} is not the name of a variable; write ${NAME} or ${NAME:-default} (line 1)",
        ),
        (
            "stages: [{type: x, name: ${X}}]",
            "(line 1, column 27); within { } and [ ], put ${VARIABLE} in quotes",
        ),
        ("stages: [", "is not valid YAML"),
        ("a: b: c", "is not valid YAML: mapping values are not allowed here (line 1, column 5)"),
        ("a: !!python/object/apply:os.system [ls]", "a: begins with `!`, which makes it a tag in YAML; put it in"),
        ("a: !!python/name:os.system x", "a: begins with `!`, which makes it a tag in YAML; put it in quotes (line 1)"),
        ("a: &x [*x]", "has values that are nested more than 64 deep"),
        ("? [a]\n: 1", "a key must be a plain word"),
        ("a: \x01", "is not valid YAML: unacceptable character"),
        ("a: 2024-13-45", "is not valid YAML: month must be in 1..12"),
    ],
)
def test_a_text_that_is_not_a_configuration(text, expected):
    """Other shapes, wrong keys and variables, foreign tags and broken YAML each have their own message."""
    message = message_of(text)
    assert message.startswith("configs/x.yaml: ")
    assert expected in message


def test_the_chain_is_checked_when_a_file_is_read():
    """A reranker before the retrieval is an error when the file is read."""
    text = "stages: [{type: word_overlap}, {type: listed_search}]"
    assert message_of(text) == (
        "configs/x.yaml: stages[0]: word_overlap needs 'hits', which stages[1] (listed_search) gives only later; "
        "move that stage before this one (line 1)"
    )


@pytest.mark.parametrize(
    ("collection", "expected"),
    [
        ("{feilds: []}", "collection.feilds: unknown key; did you mean 'fields'?"),
        (
            "{fields: [{name: a, dtype: INT64}, {name: v, dtype: FLOAT_VECTOR}]}",
            "exactly one field must have is_primary",
        ),
        (
            "{fields: [{name: a, dtype: INT64, is_primary: true}, {name: b, dtype: BOOL}]}",
            "exactly one field must be a",
        ),
        (
            "{fields: [{name: a, dtype: INT, is_primary: true}, {name: b, dtype: BOOL}]}",
            "collection.fields[0].dtype: must",
        ),
        (
            "{fields: [{name: a, dtype: FLOAT, is_primary: true}, {name: b, dtype: BOOL}]}",
            "the primary key must be INT64",
        ),
        (
            "{fields: [{name: a, dtyp: INT64}, {name: b, dtype: BOOL}]}",
            "fields[0].dtyp: unknown key; did you mean 'dtype'?",
        ),
        (
            "{index: {index_type: IVF_FLATT}, fields: [{name: a, dtype: INT64, is_primary: true}, "
            "{name: v, dtype: FLOAT_VECTOR}]}",
            "did you mean 'IVF_FLAT'?",
        ),
    ],
)
def test_mistakes_in_the_collection_have_a_place(collection, expected):
    """The collection's schema is checked when the file is read."""
    message = message_of(f"stages: [{{type: listed_search}}]\ncollection: {collection}")
    assert message.startswith("configs/x.yaml: collection")
    assert expected in message
    assert "(line 2)" in message


@pytest.mark.parametrize(
    ("make", "expected"), [(None, "no such file"), (b"", "is a folder; give the name"), (b"\xff", "is not UTF-8 text")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make, expected):
    """A missing file, a folder, and one that is not text are errors with the name."""
    path = tmp_path / "x.yaml"
    if make is not None:
        path.write_bytes(make) if make else path.mkdir()
    with pytest.raises(ConfigError, match=expected) as caught:
        Pipeline.from_yaml(path)
    assert str(path) in str(caught.value)


def test_the_json_schema_knows_every_stage():
    """A good file fits the schema, and a misspelled one does not, so that editors can check it."""
    import jsonschema
    import yaml

    from milvus_pipeline import json_schema
    from milvus_pipeline.config.file import registry

    schema = json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    kinds = {name.removeprefix("stage_") for name in schema["$defs"] if name.startswith("stage_")}
    assert kinds == set(registry.names())
    assert validator.is_valid(yaml.safe_load(GOOD))
    assert validator.is_valid(yaml.safe_load(GOOD.replace("top_k: 3", "top_n: '${K:-3}'")))
    assert not validator.is_valid(yaml.safe_load(GOOD.replace("top_k: 3", "top_k: three")))
    assert not validator.is_valid(yaml.safe_load(GOOD.replace("weight", "wieght")))
    assert not validator.is_valid(yaml.safe_load(GOOD.replace("listed_search", "listed_serch")))
