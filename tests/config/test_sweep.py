"""Sweeps: which variants a configuration describes, their names, and errors in a sweep."""

import textwrap

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline import ConfigError, Pipeline
from milvus_pipeline.config.file import json_schema, parse_config
from milvus_pipeline.config.sweep import MAX_VARIANTS
from milvus_pipeline.config.yaml import parse_yaml
from milvus_pipeline.evaluation.variants import systems_of, variants_of
from milvus_pipeline.stage import Fallback, Stage
from support.fake_stages.basic import FirstOnly, GivenScores, ListedSearch, WordOverlap

FRUIT = """
name: fruit
stages:
  - {type: listed_search}
  - {type: word_overlap, top_k: 3, weight: 2}
  - {type: first_only}
sweep:
"""
HOSTED = """
name: paid
stages:
  - {type: listed_search}
  - type: cohere
    name: rerank
    retry: {attempts: 5}
    on_error:
      fallback: {type: word_overlap, top_k: 2, on_error: skip}
  - {type: truncate, top_k: 5, min_score: 0.1, score_of: rerank}
sweep:
"""


def read(text, base=FRUIT):
    """Return the pipeline with this sweep, written below ``sweep:``."""
    return Pipeline.from_yaml(base + textwrap.indent(textwrap.dedent(text).strip("\n"), "  "))


def variants(text, base=FRUIT):
    """Return the variants of the sweep by name."""
    return variants_of(read(text, base))


def errors_of(text, base=FRUIT):
    """Return the lines of the error about a wrong sweep."""
    with pytest.raises(ConfigError) as caught:
        parse_config(base + textwrap.indent(textwrap.dedent(text).strip("\n"), "  "), "fruit.yaml")
    return str(caught.value).splitlines()


# -- which variants ------------------------------------------------------------------------------------------------


def test_all_combinations_are_made():
    """Every combination is made, and the last place varies fastest."""
    made = variants("word_overlap.weight: [1, 4]\nword_overlap.top_k: [1, 2, 3]")
    fields = [
        (each.pipeline.stage("word_overlap").weight, each.pipeline.stage("word_overlap").top_k)
        for each in made.values()
    ]
    assert fields == [(weight, top_k) for weight in (1, 4) for top_k in (1, 2, 3)]
    assert list(made)[:2] == ["weight=1 top_k=1", "weight=1 top_k=2"]
    assert made["weight=4 top_k=2"].varies == {"word_overlap.weight": 4, "word_overlap.top_k": 2}
    assert made["weight=4 top_k=2"].pipeline == Pipeline(
        [ListedSearch(), WordOverlap(top_k=2, weight=4), FirstOnly()], name="fruit weight=4 top_k=2"
    )


def test_equal_stages_of_several_variants_are_one_object():
    """Equal stages are one object, so that a model is loaded once."""
    made = list(variants("word_overlap.top_k: [1, 2]\nfirst_only: [{type: first_only}, null]").values())
    assert len({id(each.pipeline.stages[0]) for each in made}) == 1
    assert len({id(each.pipeline.stages[1]) for each in made}) == 2


def test_whole_stages_keep_the_name_of_the_one_they_replace():
    """A stage that replaces another takes its name, unless it has its own."""
    made = variants(
        """
        rerank: [{type: word_overlap, weight: 3, name: words}, {type: given_scores, scores: [1, 2, 3, 4]}]
        rerank.top_k: [1, 2]
        """,
        HOSTED.replace(", min_score: 0.1, score_of: rerank", ""),
    )
    assert list(made) == [f"rerank={stage} top_k={top_k}" for stage in ("words", "given_scores") for top_k in (1, 2)]
    put_in = [each.pipeline.stages[1] for each in made.values()]
    assert [(stage.type, stage.name, stage.top_k) for stage in put_in] == [
        ("word_overlap", "words", 1),
        ("word_overlap", "words", 2),
        ("given_scores", "rerank", 1),
        ("given_scores", "rerank", 2),
    ]
    assert made["rerank=words top_k=2"].varies == {
        "rerank": {"type": "word_overlap", "name": "words", "weight": 3.0},
        "rerank.top_k": 2,
    }


def test_a_place_within_a_mapping_or_settings_keeps_the_rest_of_them():
    """A key within a mapping or settings changes nothing else in it."""
    base = HOSTED.replace("attempts: 5", "attempts: 5, max_wait: 7")
    made = variants("rerank.retry.attempts: [1, 2]", base)
    assert [each.pipeline.stage("rerank").retry.attempts for each in made.values()] == [1, 2]
    assert {each.pipeline.stage("rerank").retry.max_wait for each in made.values()} == {7}
    base = "name: x\nstages:\n - {type: milvus_search, collection: c, params: {nprobe: 4, radius: 0.2}}\nsweep:\n"
    made = variants("milvus_search.params.nprobe: [8, 16]\nmilvus_search.limit: [5]", base)
    assert list(made) == ["nprobe=8 limit=5", "nprobe=16 limit=5"]
    assert made["nprobe=8 limit=5"].pipeline.stage("milvus_search").params == {"nprobe": 8, "radius": 0.2}


def test_a_key_of_a_mapping_may_be_any_word():
    """A mapping takes any key, also if its values may be settings with known keys."""
    base = (
        "name: x\nstages:\n - {type: listed_search}\n - {type: tei, base_url: 'http://h', headers: {X-A: a}}\nsweep:\n"
    )
    made = variants("tei.headers.X-Mode: [fast, good]", base)
    headers = [each.pipeline.stage("tei").config()["headers"] for each in made.values()]
    assert headers == [{"X-A": "a", "X-Mode": mode} for mode in ("fast", "good")]
    assert list(made) == ["X-Mode=fast", "X-Mode=good"]


def test_a_key_is_put_into_a_mapping_that_is_swept():
    """A mapping is put in before keys within it, in any order of places."""
    base = "name: x\nstages:\n - {type: milvus_search, collection: c}\nsweep:\n"
    made = variants("milvus_search.params.nprobe: [8]\nmilvus_search.params: [{radius: 0.2}]", base)
    (only,) = made.values()
    assert only.pipeline.stage("milvus_search").params == {"radius": 0.2, "nprobe": 8}


def test_a_fallback_has_places_by_its_own_name():
    """A fallback may be varied, replaced, or left out; then its own on_error takes its place."""
    made = variants("word_overlap.top_k: [1, 2]", HOSTED)
    assert [each.pipeline.stage("rerank").fallback.top_k for each in made.values()] == [2, 1]
    made = variants(
        "word_overlap: [null, {type: given_scores, scores: [1], top_k: 4}]\nword_overlap.top_k: [1]", HOSTED
    )
    assert list(made) == ["word_overlap=none", "word_overlap=given_scores top_k=1"]
    assert made["word_overlap=none"].pipeline.stage("rerank").on_error == "skip"
    stand_in = made["word_overlap=given_scores top_k=1"].pipeline.stage("rerank").fallback
    assert (stand_in.type, stand_in.name, stand_in.top_k) == ("given_scores", "word_overlap", 1)


def test_on_error_takes_fallbacks_as_data():
    """Places within a fallback do not apply if on_error replaces it."""
    made = variants(
        "rerank.on_error: [skip, {fallback: {type: given_scores, scores: [1]}}]\nword_overlap.top_k: [1, 2]", HOSTED
    )
    assert len(made) == 2
    assert made["on_error=skip"].pipeline.stage("rerank").fallback is None
    assert [each.pipeline.stage("rerank").fallback is None for each in made.values()] == [True, False]


def test_classes_need_not_be_registered():
    """A stage class made in Python can be swept, and a key put into its mapping keeps the default's others."""

    class Own(Stage):
        type = "own_and_unregistered"
        weights: dict[str, int] = {"a": 1, "b": 2}

    made = variants_of(Pipeline([ListedSearch(), Own()], sweep={"own_and_unregistered.weights.b": [3]}))
    assert made["b=3"].pipeline.stages[1] == Own(weights={"a": 1, "b": 3})
    assert made["b=3"].varies == {"own_and_unregistered.weights.b": 3}


def test_python_takes_stages_as_values():
    """A sweep in Python may contain stages, and is written to YAML as data."""
    stages = [ListedSearch(), WordOverlap(name="rerank", on_error=Fallback(GivenScores(scores=(1,))))]
    pipeline = Pipeline(stages, sweep={"rerank": [WordOverlap(weight=3), GivenScores(scores=(4,), name="own"), None]})
    made = variants_of(pipeline)
    assert list(made) == ["rerank=word_overlap", "rerank=own", "rerank=none"]
    assert [stage.name for each in made.values() for stage in each.pipeline.stages[1:]] == ["rerank", "own"]
    again = Pipeline.from_yaml(pipeline.to_yaml())
    assert {name: each.pipeline for name, each in variants_of(again).items()} == {
        name: each.pipeline for name, each in made.items()
    }


@given(
    st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4),
    st.lists(st.sampled_from([None, "word_overlap", "first_only"]), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.5, 1, 2]), min_size=1, max_size=4),
)
def test_variants_are_the_distinct_pipelines_of_the_grid(top_ks, kinds, weights):
    """The variants are the different pipelines in the product of all values, each once."""
    sweep = {
        "word_overlap.top_k": top_ks,
        "word_overlap": [kind and {"type": kind} for kind in kinds],
        "word_overlap.weight": weights,
    }
    made = variants_of(Pipeline([ListedSearch(), WordOverlap()], sweep=sweep))
    wanted = {
        (kind, top_k, float(weight)) if kind == "word_overlap" else (kind,)
        for kind in kinds
        for top_k in top_ks
        for weight in weights
    }
    found = [
        (stage.type, stage.top_k, stage.weight) if stage.type == "word_overlap" else (stage.type,)
        for each in made.values()
        for stage in (*each.pipeline.stages[1:],)
    ]
    assert len(found) == len(set(found))
    assert {*found} == {each for each in wanted if each != (None,)}
    assert len(made) == len(wanted)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ("word_overlap.top_k: [1, 2, 3]", ["top_k=3", "top_k=1", "top_k=2"]),  # the pipeline itself comes first
        ("word_overlap.top_k: [1, 2]", ["top_k=1", "top_k=2"]),  # and is not added
        ("word_overlap.top_k: [1, 1, 3, 3.0]", ["top_k=3", "top_k=1"]),  # equal values are one variant
        (  # places within a stage that is left out do not apply, nor those of a field that a stage does not have
            "word_overlap: [null, {type: word_overlap}, {type: first_only, name: cut}]\nword_overlap.weight: [1, 2]",
            ["word_overlap=none", *(f"word_overlap=word_overlap weight={n}" for n in (1, 2)), "word_overlap=cut"],
        ),
        ("word_overlap.timeout: [1, 2.5, null]", ["timeout=null", "timeout=1", "timeout=2.5"]),
        ("word_overlap.timeout: [1]\nfirst_only.timeout: [2]", ["word_overlap.timeout=1 first_only.timeout=2"]),
        ("word_overlap.top_n: [1]", ["top_n=1"]),
        ("word_overlap.name: [red, x y]", ["name=red", 'name="x y"']),
        ("listed_search.documents: [[a, b c], []]", ['documents=["a", "b c"]', "documents=[]"]),
        (
            "word_overlap: [{type: word_overlap, top_k: 1}, {type: word_overlap}]",
            ["word_overlap=word_overlap top_k=1", "word_overlap=word_overlap"],
        ),
        (
            "word_overlap: [{type: first_only, name: a}, null]\nfirst_only: [{type: first_only}, null]",
            [f"word_overlap={one} first_only={other}" for one in ("a", "none") for other in ("first_only", "none")],
        ),
        (
            f"listed_search.documents: [[{'x' * 50}a], [{'x' * 50}b]]",
            [f'documents=["{"x" * 37}… #{number}' for number in (1, 2)],
        ),
    ],
)
def test_variants_and_their_names(sweep, names):
    """Variants are distinct; a name has the unique end of each place, and of a stage its name or type."""
    assert list(variants(sweep)) == names


def test_systems_of_several_pipelines_begin_with_its_name():
    """Variants of several pipelines have the pipeline's name in front."""
    swept, plain = read("word_overlap.top_k: [1, 2]"), Pipeline([ListedSearch()], name="plain")
    assert list(systems_of({"fruit": swept, "plain": plain})) == ["fruit top_k=1", "fruit top_k=2", "plain"]
    assert list(systems_of({"fruit": swept})) == ["top_k=1", "top_k=2"]
    assert systems_of({"other": plain})["other"].pipeline is plain


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            "word_overlap.weigth: [1]",
            "sweep.word_overlap.weigth: unknown key; did you mean 'weight'? (line 8)",
        ),
        (
            "word_ovrlap.weight: [1]",
            "sweep.word_ovrlap.weight: no stage has this name; did you mean 'word_overlap'? (line 8)",
        ),
        ("word_ovrlap: [null]", "sweep.word_ovrlap: no stage has this name; did you mean 'word_overlap'? (line 8)"),
        ("word_overlap.top_k: [1, 0]", "sweep.word_overlap.top_k[1]: must be at least 1, got 0 (line 8)"),
        ("word_overlap.top_n: [1, 0]", "sweep.word_overlap.top_n[1]: must be at least 1, got 0 (line 8)"),
        (
            "word_overlap.top_k:\n  - 1\n  - many",
            "sweep.word_overlap.top_k[1]: must be a whole number, got a string (line 10)",
        ),
        ("word_overlap.weight: [true]", "sweep.word_overlap.weight: must not be true (line 8)"),
        (
            "word_overlap.weight.x: [1]",
            "sweep.word_overlap.weight.x: must be a number, got a mapping (line 8)",
        ),
        ("word_overlap.top_k: 3", "sweep.word_overlap.top_k: must be a list, got 3 (line 8)"),
        ("word_overlap.top_k: []", "sweep.word_overlap.top_k: must not be empty (line 8)"),
        (
            "word_overlap.top_k: ['${NOT_SET_HERE}']",
            "sweep.word_overlap.top_k[0]: the environment variable NOT_SET_HERE is not set; set it, or give a "
            "default: ${NOT_SET_HERE:-value} (line 8)",
        ),
        (
            "word_overlap:\n  - {type: word_overlap, top: 1}",
            "sweep.word_overlap[0].top: unknown key; did you mean 'top_k'? (line 9)",
        ),
        (
            "word_overlap: [word_overlap]",
            "sweep.word_overlap[0]: must be a mapping with a `type`, such as {type: truncate, top_k: 5} (line 8)",
        ),
        (
            "word_overlap: [{type: word_overlp}]",
            "sweep.word_overlap[0].type: no stage is named 'word_overlp'; did you mean 'word_overlap'? (line 8)",
        ),
        (
            "word_overlap.type: [bge]",
            "sweep.word_overlap.type: is not a field; put whole stages in the stage's place: "
            "word_overlap: [{type: bge}, {type: cohere}] (line 8)",
        ),
        (
            "word_overlap.on_error: [{fallback: {type: faulty, hw: 1}}]",
            "sweep.word_overlap.on_error[0].fallback.hw: unknown key; did you mean 'how'? (line 8)",
        ),
        (
            "word_overlap.on_error.fallback: [null]",
            "sweep.word_overlap.on_error.fallback: must be a mapping with a `type`, such as {type: truncate, top_k: 5} "
            "(line 8)",
        ),
        (
            "word_overlap.top_k: [1]\nword_overlap.top_n: [2]",
            "sweep.word_overlap.top_n: is the same place as 'word_overlap.top_k'; remove one of them (line 9)",
        ),
        (
            "word_overlap: [{type: word_overlap, name: first_only}]",
            "sweep: the variant 'word_overlap=first_only' does not fit: 'first_only' is also the name of stages[1]; "
            "give one of them another `name` (line 7)",
        ),
        (
            "first_only: [null]\nlisted_search: [{type: listed_search}, null]",
            "sweep: the variant 'first_only=none listed_search=none' does not fit: word_overlap "
            "needs 'hits', which no stage before it gives; put a retrieval stage such as milvus_search first "
            "(line 7)",
        ),
        (
            f"word_overlap.top_k: {list(range(1, 40))}\nword_overlap.weight: {list(range(1, 40))}",
            f"sweep: has 1,521 combinations (39 x 39), the most are {MAX_VARIANTS:,}; try fewer values (line 7)",
        ),
    ],
)
def test_a_wrong_sweep_is_reported_with_place_and_line(sweep, message):
    """A wrong sweep is an error when the configuration is read."""
    lines = errors_of(sweep)
    assert len(lines) == 1
    assert lines[0].startswith("fruit.yaml: ")
    assert lines[0].removeprefix("fruit.yaml: ") == message


def test_every_problem_is_reported_once():
    """A wrong value is reported once, however many combinations have it."""
    lines = errors_of("word_overlap.top_k: [0, 1, -1]\nword_overlap.weight: [1, 2, heavy]\nnone.x: [1]")
    assert len(lines) == 1  # a place that does not exist is reported first
    lines = errors_of("word_overlap.top_k: [0, 1, -1]\nword_overlap.weight: [1, 2, heavy]")
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == [
        "sweep.word_overlap.top_k[0]",
        "sweep.word_overlap.top_k[2]",
        "sweep.word_overlap.weight[2]",
    ]


def test_a_wrong_key_of_settings_is_reported():
    """A wrong key or value within settings is reported with a suggestion."""
    (line,) = errors_of("rerank.retry.atempts: [1]", HOSTED)
    assert line == "fruit.yaml: sweep.rerank.retry.atempts: unknown key; did you mean 'attempts'? (line 12)"
    (line,) = errors_of("rerank.retry.attempts: [0]", HOSTED)
    assert line == "fruit.yaml: sweep.rerank.retry.attempts: must be at least 1, got 0 (line 12)"


def test_problems_of_the_stages_come_first():
    """A sweep is not checked if the stages themselves are wrong."""
    (line,) = errors_of("word_overlap.nothing: [1]", FRUIT.replace("top_k: 3", "top_k: 0"))
    assert "stages[1].top_k: must be at least 1" in line


def test_a_sweep_made_in_python_is_checked_when_its_variants_are_made():
    """variants_of raises ConfigError with the problems of a sweep made in Python."""
    with pytest.raises(ConfigError) as caught:
        variants_of(Pipeline([ListedSearch()], name="fruit", sweep={"listed_search.x": [1], "other": [None]}))
    assert str(caught.value) == "fruit: sweep.other: no stage has this name; known are listed_search"
    with pytest.raises(ConfigError) as caught:
        variants_of(Pipeline([ListedSearch()], name="fruit", sweep={"listed_search.x": [1, 2]}))
    known = "known are documents, name, on_error, timeout"
    assert str(caught.value) == f"fruit: sweep.listed_search.x: unknown key; {known}"
    with pytest.raises(ConfigError, match=r"sweep: the variant .* no stage is left"):
        variants_of(Pipeline([ListedSearch()], sweep={"listed_search": [None]}))


# -- in a configuration --------------------------------------------------------------------------------------------


def test_the_sweep_survives_yaml_and_run_ignores_it():
    """A sweep is written and read back, and does not change what the pipeline does."""
    pipeline = read("word_overlap.top_k: [1, 2]\nfirst_only: [null, {type: first_only, name: cut}]")
    again = Pipeline.from_yaml(pipeline.to_yaml())
    assert again == pipeline
    assert again.sweep == {"word_overlap.top_k": [1, 2], "first_only": [None, {"type": "first_only", "name": "cut"}]}
    without = Pipeline(pipeline.stages, name=pipeline.name)
    assert pipeline.run("red plum") == without.run("red plum")


@pytest.mark.parametrize(
    ("sweep", "fits"),
    [
        ("milvus_search.limit: [1, 2]", True),
        ("rerank: [{type: bge, top_k: 2}, null]", True),
        ("milvus_search.limit: 3", False),
        ("milvus_search.limit: []", False),
        ("rerank: [{type: bge, topk: 2}]", False),
        ("rerank: [bge]", False),
    ],
)
def test_the_json_schema_describes_sweeps(sweep, fits):
    """The schema accepts lists of values or stages in a sweep, and nothing else."""
    data = parse_yaml(f"stages: [{{type: milvus_search, collection: c}}]\nsweep:\n  {sweep}").data
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(data) == fits
