"""What every registered stage must do, of this project or of a plugin.

The suite finds the stages by their entry points. A stage that can be made without arguments is tested as it is; one
that needs more (a model, a collection) is listed in ``support.specimens``.
"""

import asyncio
import copy
import json
import math
import os
from importlib.metadata import entry_points

import numpy as np
import pytest

from milvus_pipeline import ConfigError, Hit, Query, QueryError, SearchResult
from milvus_pipeline.config.registry import GROUP
from milvus_pipeline.plugin import CheckContext, Context, Deadline, Finding, Reranker, Stage, registry
from support.specimens import TEXTS, World, specimen

NAMES = sorted({point.name for point in entry_points(group=GROUP)})
RERANKERS = [name for name in NAMES if issubclass(registry.get(name), Reranker)]
AFTER_RETRIEVAL = [name for name in NAMES if "hits" in registry.get(name).needs]
SECRETS = (
    "MILVUS_TOKEN",
    "HF_TOKEN",
    "COHERE_API_KEY",
    "VOYAGE_API_KEY",
    "JINA_API_KEY",
    "MXBAI_API_KEY",
    "TYPESAFE_API_KEY",
)
"""Variables of the environment that hold keys."""
QUERIES = ("where is the red plum?", "blue", "a question that none of the texts answers")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Small models, a small collection and services that stages can be made with."""
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


@pytest.fixture(params=NAMES)
def stage(request, world):
    """A closed stage of each registered type; closed again when the test is over."""
    yield from closed_again(specimen(request.param, world))


@pytest.fixture(params=RERANKERS)
def reranker(request, world):
    """A closed reranker of each registered type; closed again when the test is over."""
    yield from closed_again(specimen(request.param, world))


def closed_again(made: Stage):
    """The stage; afterwards it is closed, however many users it still has."""
    yield made
    while made.is_open:
        made.close()


def inputs(world: World, queries=QUERIES) -> list[SearchResult]:
    """Results as any stage may meet them: queries with vectors, hits with texts and a retrieval score."""
    hits = [Hit(i, text, 0.0, {"n": i}).ranked("search", 1.0 - i / 10, i + 1) for i, text in enumerate(TEXTS)]
    return [
        SearchResult(Query(text, vector=world.vector(text), id=str(i)), list(hits)) for i, text in enumerate(queries)
    ]


def processed(stage: Stage, results: list[SearchResult]) -> tuple[list[SearchResult], Context]:
    """What the stage makes of the results, and the context it was given."""
    context = Context(Deadline.after(120), len(results))
    return list(stage.process(results, context)), context


def dry_run(stage: Stage, results: list[SearchResult]) -> tuple[list[SearchResult], Context]:
    """What the stage makes of the results in a dry run, and the context it was given."""
    context = Context(Deadline.after(120), len(results))
    return list(stage.dry_run(results, context)), context


def close_to(one: SearchResult, other: SearchResult) -> bool:
    """Equal but for the last digits, which differ with the make-up of a batch of floating-point work."""
    return [hit.id for hit in one] == [hit.id for hit in other] and all(
        math.isclose(a.scores[name], b.scores[name], rel_tol=1e-4, abs_tol=1e-5)
        for a, b in zip(one, other, strict=True)
        for name in a.scores
    )


def test_it_is_what_it_is_registered_as(stage):
    """The class carries the name of its entry point, and an instance is named after it by default."""
    assert registry.get(stage.type) is type(stage)
    assert stage.name == stage.type


def test_its_fields_are_described(stage):
    """`milvus-pipeline stages` and the JSON Schema have a word on every field."""
    assert type(stage).__doc__
    missing = [name for name, field in type(stage).model_fields.items() if not field.description]
    assert missing == []


def test_it_refuses_a_misspelt_argument_with_a_suggestion(stage):
    """A wrong key never passes in silence."""
    with pytest.raises(ConfigError, match="tiemout: unknown key; did you mean 'timeout'"):
        type(stage)(**{**fields(stage), "tiemout": 3})


@pytest.mark.parametrize(("field", "value"), [("timeout", 0), ("timeout", "soon"), ("on_error", "ignore"), ("name", 3)])
def test_it_refuses_wrong_common_fields(stage, field, value):
    """The fields that all stages share are checked in all of them."""
    with pytest.raises(ConfigError, match=f"{field}: must be"):
        type(stage)(**{**fields(stage), field: value})


def test_it_cannot_be_changed(stage):
    """A stage is its configuration, and frozen."""
    with pytest.raises(ValueError, match="frozen"):
        stage.timeout = 3.0


def test_its_configuration_builds_it_again(stage):
    """The configuration is plain data that survives JSON and gives an equal stage."""
    data = json.loads(json.dumps(stage.config()))
    assert data.pop("type") == stage.type
    assert type(stage)(**data) == stage


def test_it_knows_what_it_needs_and_gives(stage):
    """The chain check reads these sets."""
    known = {"query_text", "vector", "hits", "text"}
    assert {need for need in stage.requires() if not need.startswith("score:")} <= known
    assert stage.provides() <= known


def test_it_gives_what_it_says(stage, world):
    """After the stage every result carries what the stage promised."""
    with_stage_open(stage)
    results, context = processed(stage, inputs(world) if "hits" in stage.requires() else bare(world, stage))
    assert context.failures == {}
    for result in results:
        if "vector" in stage.provides():
            assert np.asarray(result.query.vector).ndim == 1
        if "hits" in stage.provides():
            assert result.hits
        if "text" in stage.provides():
            assert all(isinstance(hit.text, str) for hit in result)


def test_it_leaves_its_input_alone(stage, world):
    """A stage returns new records, so that the input is whole if it fails."""
    with_stage_open(stage)
    given = inputs(world)
    before = copy.deepcopy(given)
    processed(stage, given)
    assert given == before


def test_a_batch_equals_single_queries(stage, world):
    """What a query gets does not depend on its neighbours, nor on how often it is asked."""
    with_stage_open(stage)
    together, _ = processed(stage, inputs(world))
    for result, query in zip(together, QUERIES, strict=True):
        alone, _ = processed(stage, inputs(world, [query]))
        again, _ = processed(stage, inputs(world, [query]))
        assert alone == again
        assert close_to(alone[0], result)


def test_async_equals_sync(stage, world):
    """An event loop gets the same."""
    with_stage_open(stage)
    context = Context(Deadline.after(120), len(QUERIES))

    async def run():
        results = list(await stage.aprocess(inputs(world), context))
        await stage.aclose()
        return results

    synchronous, _ = processed(stage, inputs(world))
    assert asyncio.run(run()) == synchronous


@pytest.mark.parametrize("stage", AFTER_RETRIEVAL, indirect=True)
def test_results_without_hits_pass_through(stage, world):
    """A query without hits does not fail."""
    with_stage_open(stage)
    results, context = processed(stage, [SearchResult(Query("red", id="1")), *inputs(world, ["red plum"])])
    assert context.failures == {}
    assert results[0].hits == []
    assert results[1].hits


def test_it_opens_and_closes_more_than_once(stage, world):
    """Open counts its users; after the last close the stage can be opened anew."""
    stage.open()
    stage.open()
    stage.close()
    assert stage.is_open
    stage.close()
    assert not stage.is_open
    stage.close()
    stage.open()
    results, context = processed(stage, inputs(world))
    assert len(results) == len(QUERIES)
    assert context.failures == {}


def test_it_is_a_context_manager(stage):
    """Blocking and on an event loop: open within, closed behind."""

    async def run():
        async with stage as entered:
            assert entered is stage
            assert stage.is_open
        assert not stage.is_open

    asyncio.run(run())
    with stage as entered:
        assert entered is stage
        assert stage.is_open
    assert not stage.is_open


def test_its_dry_run_leaves_its_input_alone(stage, world):
    """A dry run returns as many results, new ones if they differ, and opens the stage only if it must."""
    if stage.dry_run_opens:
        with_stage_open(stage)
    given = inputs(world)
    before = copy.deepcopy(given)
    results, context = dry_run(stage, given)
    assert given == before
    assert context.failures == {}
    assert [result.query.id for result in results] == [result.query.id for result in given]
    assert stage.is_open == stage.dry_run_opens


def test_its_check_says_what_to_do_and_changes_nothing(stage, world):
    """Closed and open it raises nothing, every warning and error has a next step, and the stage works as before."""

    def checked():
        context = CheckContext(Deadline.after(60), texts=[text for text in TEXTS if text], documents=len(TEXTS), hits=5)
        found = list(stage.check(context))
        assert all(type(one) is Finding and one.topic and one.message for one in found)
        assert all(one.next_step for one in found if one.level != "ok")
        assert not any(text and text in json.dumps([one.to_dict() for one in found]) for text in TEXTS)
        return [(one.level, one.topic) for one in found]

    closed = checked()
    assert not stage.is_open
    with_stage_open(stage)
    before, _ = processed(stage, inputs(world))
    assert checked() == closed
    after, _ = processed(stage, inputs(world))
    assert all(map(close_to, before, after))


def test_its_identity(stage, world, monkeypatch):
    """Plain data, the same whenever it is opened, short, and without a key."""
    for variable in SECRETS:
        if not os.environ.get(variable):
            monkeypatch.setenv(variable, f"marker-of-{variable}-0123456789")

    def identity_text():
        with stage:
            return json.dumps(stage.identity(), sort_keys=True, allow_nan=False)

    first = identity_text()
    assert first == identity_text()
    assert len(first) < 4000
    keys = [value for name, value in os.environ.items() if name in SECRETS or name.startswith("SPECIMEN_KEY_")]
    assert len(keys) >= len(SECRETS)
    assert not any(key in first for key in keys)


def test_its_prints_hold_no_document(stage, world):
    """Neither repr nor str nor configuration of a stage that worked carries a text."""
    with_stage_open(stage)
    processed(stage, inputs(world))
    for shown in (repr(stage), str(stage), json.dumps(stage.config())):
        assert not any(text and text in shown for text in TEXTS)


# -- rerankers ---------------------------------------------------------------------------------------------------


def test_a_reranker_orders_the_hits_it_was_given(reranker, world):
    """No hit is lost, invented or stripped of an earlier score; scores fall, ranks count from 1."""
    with_stage_open(reranker)
    results, _ = processed(reranker, inputs(world))
    for given, result in zip(inputs(world), results, strict=True):
        assert sorted(hit.id for hit in result) == sorted(hit.id for hit in given)
        assert all(hit.scores["search"] == given.hits[hit.id].score for hit in result)
        scored = [hit.scores[reranker.name] for hit in result if reranker.name in hit.scores]
        assert all(type(score) is float and math.isfinite(score) for score in scored)
        assert scored == sorted(scored, reverse=True)
        assert [hit.ranks[reranker.name] for hit in result] == list(range(1, len(result) + 1))


def test_a_reranker_cuts_to_top_k_by_either_name(reranker, world):
    """`top_k` and its alias `top_n` keep the best."""
    for name in ("top_k", "top_n"):
        cut = type(reranker)(**{**fields(reranker), name: 2})
        assert cut.top_k == 2
        with_stage_open(cut)
        whole, _ = processed(with_stage_open(reranker), inputs(world))
        part, _ = processed(cut, inputs(world))
        cut.close()
        assert [result.hits for result in part] == [result.hits[:2] for result in whole]


def test_a_reranker_sends_nothing_in_a_dry_run(reranker, world):
    """Closed, it keeps hits, order and scores as they are, cuts to `top_k`, and plans in whole numbers."""
    given = inputs(world)
    whole, context = dry_run(reranker, given)
    assert [result.hits for result in whole] == [result.hits for result in given]
    cut = type(reranker)(**{**fields(reranker), "top_k": 2})
    part, _ = dry_run(cut, given)
    assert [result.hits for result in part] == [result.hits[:2] for result in given]
    assert not reranker.is_open
    for details in context.details:
        assert "usage" not in details
        planned = details.get("planned", {})
        assert ({"requests", "documents", "tokens"} <= planned.keys()) == reranker.sends
        assert all(type(number) is int and number > 0 for number in planned.values())


def test_a_reranker_reports_in_a_dry_run_what_it_cannot_rank(reranker, world):
    """A blank query fails, alone, and hits without a text are left out, as in a run."""
    blank, good = inputs(world, ["  ", "red plum"])
    no_text = SearchResult(Query("red", id="2"), [Hit(1, None, 0.5)])
    results, context = dry_run(reranker, [blank, good, no_text])
    assert list(context.failures) == [0]
    assert isinstance(context.failures[0], QueryError)
    assert results[1].hits == good.hits
    assert context.warnings[2] == ["1 of 1 hits have no text; ranked last, without a score"]
    assert context.details[2] == {}


def test_a_reranker_is_callable_alone(reranker, world):
    """Called with plain texts it gives the order and scores that it gives as a stage."""
    alone = reranker(QUERIES[0], TEXTS, top_k=3)
    (result,), _ = processed(reranker, inputs(world, QUERIES[:1]))
    assert [one.index for one in alone] == [hit.id for hit in result][:3]
    assert [one.text for one in alone] == [TEXTS[one.index] for one in alone]
    # A deadline makes other chunks of a local model's work, and padding differs in the last digits.
    assert [one.score for one in alone] == pytest.approx(
        [hit.scores[reranker.name] for hit in result.hits[:3]], abs=1e-6
    )


def test_an_awaited_call_equals_a_blocking_one(reranker):
    """`acall` ranks plain texts as calling does, opens the stage likewise, and refuses the same."""

    async def run():
        ranking = await reranker.acall(QUERIES[0], TEXTS, top_k=3)
        with pytest.raises(QueryError, match="the query is empty"):
            await reranker.acall(" ", TEXTS)
        await reranker.aclose()
        return ranking

    assert asyncio.run(run()) == reranker(QUERIES[0], TEXTS, top_k=3)


@pytest.mark.parametrize(
    ("query", "documents", "says"),
    [
        ("", ["a"], "the query is empty"),
        ("  ", ["a"], "the query is empty"),
        (3, ["a"], "the query must be a string, got int"),
        ("a", "one text", "documents must be a list of strings, got one string"),
        ("a", ["b", 7], r"documents\[1\] must be a string, got int"),
        ("a", [None], r"documents\[0\] must be a string, got NoneType"),
    ],
)
def test_a_reranker_refuses_what_it_cannot_read(reranker, query, documents, says):
    """Queries and documents that are no texts are refused before any work, by name and position."""
    with pytest.raises(QueryError, match=says):
        reranker(query, documents)


def test_a_reranker_takes_empty_and_very_long_documents(reranker):
    """Empty, blank and very long documents are ranked like the others, and none is dropped."""
    documents = ["", "  \n", "red plum " * 20_000, "the red plum"]
    ranked = reranker("red plum", documents)
    assert sorted(one.index for one in ranked) == [0, 1, 2, 3]
    assert reranker("red plum", []) == []


def test_a_reranker_with_a_cache_ranks_as_without(reranker, world, tmp_path):
    """Cold and warm, cut and whole: the same order and scores, and each report has the number of cached scores."""
    plain, _ = processed(with_stage_open(reranker), inputs(world))
    scored = [sum(reranker.name in hit.scores for hit in result) for result in plain]
    with cached(reranker, tmp_path) as first:
        cold, context = processed(first, inputs(world))
        assert [details["cached"] for details in context.details] == [0] * len(QUERIES)
        warm, context = processed(first, inputs(world))
        assert [details["cached"] for details in context.details] == scored
    with cached(reranker, tmp_path, top_k=2) as other:
        part, context = processed(other, inputs(world))
        assert [details["cached"] for details in context.details] == scored
        alone = other(QUERIES[0], TEXTS)
    assert all(map(close_to, cold, plain))
    assert warm == cold
    assert [result.hits for result in part] == [result.hits[:2] for result in cold]
    assert [(one.index, one.score) for one in alone] == [(hit.id, hit.scores[reranker.name]) for hit in part[0]]


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_reranker_with_a_cache_scores_no_text_twice(reranker, world, tmp_path, monkeypatch, way):
    """What has a score is not given to it again; of a new query everything is."""
    given: list[tuple[str, str]] = []

    def noting(name):
        original = getattr(type(reranker), name)

        def noted(self, jobs, context):
            given.extend((job.query, text) for job in jobs for text in job.texts)
            return original(self, jobs, context)

        monkeypatch.setattr(type(reranker), name, noted)

    def ranked(stage, queries):
        given.clear()
        if way == "sync":
            return processed(stage, inputs(world, queries))[0]

        async def run():
            results = list(await stage.aprocess(inputs(world, queries), Context(Deadline.after(120), len(queries))))
            await stage.aclose()
            return results

        stage.open()  # for the loop, which closes it
        return asyncio.run(run())

    noting("score_batch" if way == "sync" else "ascore_batch")
    with cached(reranker, tmp_path) as stage:
        results = ranked(stage, QUERIES[:2])
        assert set(given) == {(query, text) for query in QUERIES[:2] for text in TEXTS}
        assert ranked(stage, QUERIES[:2]) == results
        known = {(r.query.text, hit.text) for r in results for hit in r if stage.name in hit.scores}
        assert known
        assert known.isdisjoint(given)
        ranked(stage, QUERIES[1:])
        assert {query for query, text in given if text} == {QUERIES[2]}


def cached(reranker: Reranker, folder, **others) -> Reranker:
    """The same reranker, closed, with a score cache in the folder."""
    return type(reranker)(**{**fields(reranker), "cache": str(folder / "scores.db"), **others})


def fields(stage: Stage) -> dict:
    """The arguments that made the stage."""
    return {key: value for key, value in stage.config().items() if key != "type"}


def with_stage_open(stage: Stage) -> Stage:
    """The stage, open."""
    if not stage.is_open:
        stage.open()
    return stage


def bare(world: World, stage: Stage) -> list[SearchResult]:
    """Results as the first stages get them: no hits, and a vector only if one is needed."""
    vectors = "vector" in stage.requires()
    return [SearchResult(Query(text, vector=world.vector(text) if vectors else None)) for text in QUERIES]
