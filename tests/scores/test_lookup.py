"""A reranker with a score cache: known scores are not computed again, and nothing else changes."""

import asyncio
import importlib
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from milvus_pipeline import Hit, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline
from milvus_pipeline.scores import store
from support.fake_stages.basic import ListedSearch
from support.fake_stages.counted import Counted

TEXTS = ("red apple", "green pear and red plum", "blue sky", "", "red apple")


@pytest.fixture
def file(tmp_path):
    """A place for a cache."""
    return tmp_path / "scores.db"


@pytest.fixture(params=["sync", "async"])
def way(request):
    """Blocking or awaited."""
    return request.param


def batch(stage, *queries, way="sync", texts=TEXTS, deadline=None):
    """The results of the stage for these queries and texts, with its context."""
    hits = [Hit(place, text, 0.0) for place, text in enumerate(texts)]
    results = [SearchResult(Query(query), list(hits)) for query in queries]
    context = Context(deadline or Deadline(), len(results))
    if way == "async":
        return list(asyncio.run(stage.aprocess(results, context))), context
    return list(stage.process(results, context)), context


def ranking(result, name="counted"):
    """Keys and scores, best first."""
    return [(hit.id, hit.scores.get(name)) for hit in result]


def cached(context):
    """How many scores of each query came from the cache."""
    return [details.get("cached") for details in context.details]


def test_what_is_known_is_not_scored_again(file, way):
    """The second time nothing is scored, also by an equal stage, and the ranking is that without a cache."""
    plain, _ = batch(Counted(), "red plum", "sky", way=way)
    with Counted(cache=str(file)) as stage:
        first, context = batch(stage, "red plum", "sky", way=way)
        assert cached(context) == [0, 0]
        assert stage.asked == [TEXTS[:4], TEXTS[:4]]
        second, context = batch(stage, "red plum", "sky", way=way)
        assert cached(context) == [5, 5]
    with Counted(cache=file, speed=3, timeout=9, name="counted", on_error="skip") as other:
        third, context = batch(other, "red plum", "sky", way=way)
        assert cached(context) == [5, 5]
        assert other.asked == stage.asked == []
    assert list(map(ranking, first)) == list(map(ranking, second)) == list(map(ranking, third))
    assert list(map(ranking, first)) == list(map(ranking, plain))


def test_only_what_is_missing_is_asked(file, way):
    """Only unknown texts are scored, each once."""
    with Counted(cache=str(file)) as stage:
        batch(stage, "red", way=way, texts=("a red one", "blue"))
        assert stage.asked == [("a red one", "blue")]
        results, context = batch(stage, "red", "blue", way=way, texts=("blue", "new", "a red one", "new"))
        assert stage.asked == [("new",), ("blue", "new", "a red one")]
        assert cached(context) == [2, 0]
        assert results[0].hits[0].text == "a red one"
        batch(stage, "red", "green", way=way, texts=("blue", "new"))
        assert stage.asked == [("blue", "new")]


@pytest.mark.parametrize(
    "other",
    [{"weight": 2.0}, {"weight": 1.0000000000000002}, {"commit": "b"}, {"lists": True}],
    ids=["parameter", "last_bit", "revision", "listwise"],
)
def test_what_makes_other_scores_is_kept_apart(file, other):
    """Another parameter, even in the last bit, or another revision of the model has other keys."""
    with Counted(cache=str(file)) as one, Counted(cache=str(file), **other) as two:
        batch(one, "red")
        results, context = batch(two, "red")
        assert cached(context) == [0]
        assert ranking(results[0]) == ranking(batch(Counted(**other), "red")[0][0])
        assert cached(batch(one, "red")[1]) == cached(batch(two, "red")[1]) == [5]


def test_another_class_is_kept_apart(file):
    """Two classes with the same fields have other keys."""

    class Other(Counted):
        def score(self, query, texts):
            return [-float(len(text)) for text in texts]

    with Counted(cache=str(file)) as one, Other(cache=str(file)) as two:
        batch(one, "red")
        _, context = batch(two, "red")
    assert cached(context) == [0]


BASE = """
from support.fake_stages.counted import Counted

class Base(Counted):
    def score(self, query, texts):
        return [VALUE for _ in texts]
"""
PLUGIN = """
from base_of_plugin import Base

class Plugin(Base):
    pass
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Import a plugin anew, as another process would, with this score in the file of its base."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def made(score):
        (tmp_path / "base_of_plugin.py").write_text(BASE.replace("VALUE", str(score)))
        (tmp_path / "plugin.py").write_text(PLUGIN)
        for name in ("base_of_plugin", "plugin"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("plugin").Plugin

    return made


def test_a_plugin_whose_base_is_edited_is_another(file, plugin):
    """A change in the file of a base class counts; without a change the scores are found."""
    for score, known in ((1.0, 0), (1.0, 5), (2.0, 0), (1.0, 5)):
        with plugin(score)(cache=str(file)) as stage:
            (result,), context = batch(stage, "red")
            assert (cached(context), ranking(result)[0][1]) == ([known], score)


def test_a_plugin_that_was_edited_after_its_import_is_what_it_was(file, plugin):
    """A class that was imported before an edit does not use the scores of the edited file."""
    old = plugin(1.0)
    new = plugin(2.0)
    with old(cache=str(file)) as stage:
        batch(stage, "red")
    with new(cache=str(file)) as stage:
        (result,), context = batch(stage, "red")
        assert (cached(context), ranking(result)[0][1]) == ([0], 2.0)


def test_a_class_without_a_file_goes_by_its_code(file):
    """Of a class from a prompt or notebook the code counts."""
    for score, known in ((1.0, 0), (1.0, 5), (2.0, 0)):
        typed: dict[str, object] = {"__name__": "typed"}
        exec(BASE.replace("VALUE", str(score)), typed)  # noqa: S102 - what the user typed
        with typed["Base"](cache=str(file)) as stage:
            (result,), context = batch(stage, "red")
            assert (cached(context), ranking(result)[0][1]) == ([known], score)


def test_query_and_text_are_not_mixed_up(file):
    """Query and text are kept apart in the key; strings with lone surrogates are texts, too."""
    with Counted(cache=str(file)) as stage:
        for query, text in (("ab", "c"), ("a", "bc"), ("c", "ab"), ("ab", "c "), ("ab", "\ud800"), ("ab", "\ud801")):
            assert cached(batch(stage, query, texts=(text,))[1]) == [0]
        assert cached(batch(stage, "ab", texts=("\ud801", "c", "new"))[1]) == [2]


def test_all_scores_are_asked_for(file):
    """With a cache all scores are requested, and `top_k` is applied here."""
    with Counted(top_k=2) as stage:
        plain, _ = batch(stage, "red")
        assert [top_k for *_, top_k in stage._received] == [2]
    with Counted(top_k=2, cache=str(file)) as stage:
        first, _ = batch(stage, "red")
        assert [top_k for *_, top_k in stage._received] == [None]
        second, _ = batch(stage, "red")
        ranked = stage("red", TEXTS)
        assert len(stage._received) == 1
    with Counted(cache=str(file)) as whole:
        assert cached(batch(whole, "red")[1]) == [5]
    assert ranking(first[0]) == ranking(second[0]) == ranking(plain[0])
    assert [(one.index, one.score) for one in ranked] == ranking(plain[0])


def test_alone_it_works_as_well(file):
    """A cache works without a pipeline, blocking and awaited."""

    async def awaited():
        async with Counted(cache=str(file)) as stage:
            return await stage.acall("red plum", TEXTS, top_k=2), stage.asked

    with Counted(cache=str(file)) as stage:
        ranked = stage("red plum", TEXTS, top_k=2)
        assert len(stage.asked) == 1
        assert stage("red plum", TEXTS, top_k=2) == ranked
        assert stage.asked == []
    assert asyncio.run(awaited()) == (ranked, [])
    assert ranked == Counted()("red plum", TEXTS, top_k=2)


def test_a_list_is_known_whole_or_not_at_all(file, way):
    """If scores depend on the other texts, another list or order has other keys."""
    with Counted(cache=str(file), lists=True) as stage:
        first, context = batch(stage, "red", way=way)
        assert cached(context) == [0]
        again, context = batch(stage, "red", way=way)
        assert cached(context) == [5]
        assert stage.asked == [TEXTS]
        assert ranking(again[0]) == ranking(first[0]) == ranking(batch(Counted(lists=True), "red")[0][0])
        for texts in (TEXTS[:4], TEXTS[::-1], (*TEXTS, "more")):
            assert cached(batch(stage, "red", way=way, texts=texts)[1]) == [0]
            assert stage.asked == [texts]


def test_a_list_that_lacks_a_score_is_not_kept(file):
    """A list is not kept if it is cut short, or a text is unscored."""
    with Counted(cache=str(file), lists=True, how=("short",)) as stage:
        for query, texts in (("short", TEXTS), ("red", ("red", "hollow"))):
            batch(stage, query, texts=texts)
            _, context = batch(stage, query, texts=texts)
            assert cached(context) == [0]


def test_what_has_no_score_is_asked_for_again(file):
    """Texts without a score are scored again; the scores of a partial query are kept."""
    with Counted(cache=str(file), how=("short",)) as stage:
        results, _ = batch(stage, "red", texts=("red", "hollow"))
        assert ranking(results[0])[-1] == (1, None)
        _, context = batch(stage, "red", texts=("red", "hollow"))
        assert cached(context) == [1]
        assert stage.asked == [("red", "hollow"), ("hollow",)]
        _, context = batch(stage, "short", texts=("a", "b", "c"))
        assert context.partials[0].reason == "1 was not scored"
        _, context = batch(stage, "short", texts=("a", "b"))
        assert (cached(context), context.partials[0]) == ([2], None)


@pytest.mark.parametrize("how", ["fail", "nan", "many"])
def test_a_query_that_failed_keeps_nothing(file, way, how):
    """A query that failed has the error it has without a cache, and none of its scores is kept."""
    with Counted(cache=str(file), how=(how,)) as stage, Counted(how=(how,)) as plain:
        _, expected = batch(plain, f"{how} red", "red", way=way, texts=TEXTS[:4])
        results, context = batch(stage, f"{how} red", "red", way=way, texts=TEXTS[:4])
        assert [str(error) for error in context.failures.values()] == [str(e) for e in expected.failures.values()]
        assert list(context.failures) == [0]
        assert results[1].hits[0].text == "green pear and red plum"
        _, context = batch(stage, f"{how} red", "red", way=way, texts=TEXTS[:4])
        assert cached(context) == [0, 4]


def test_a_query_that_is_known_needs_no_service(file, way):
    """Queries with known scores are answered without the service; the others fail."""
    with Counted(cache=str(file)) as stage:
        batch(stage, "crash red")
    with Counted(cache=str(file), how=("crash",)) as stage:
        results, context = batch(stage, "crash red", way=way)
        assert (cached(context), context.failures) == ([5], {})
        results, context = batch(stage, "crash red", "crash blue", way=way)
        assert ranking(results[0]) != []
        assert list(context.failures) == [1]
        assert isinstance(context.failures[1], ConnectionError)
        with pytest.raises(ConnectionError, match="the service is gone"):
            batch(stage, "crash green", "crash blue", way=way)


@pytest.mark.parametrize("how", ["late", "slow"])
def test_time_that_is_up_leaves_what_is_known(file, way, how):
    """After the deadline a query with some known scores is partial, and one with none fails."""
    with Counted(cache=str(file)) as stage:
        batch(stage, f"{how} red", texts=TEXTS[:2])
    with Counted(cache=str(file), how=(how,)) as stage:
        results, context = batch(stage, f"{how} red", f"{how} sky", way=way)
        assert context.partials[0].code == "deadline"
        assert context.partials[0].reason.startswith("2 of 5 documents were not scored: ")
        assert [hit.id for hit in results[0]] == [1, 0, 4, 2, 3]
        assert list(context.failures) == [1]


def test_a_report_counts_the_cached_scores(file):
    """The report's details have the number of cached scores."""
    with Pipeline([ListedSearch(), Counted(cache=str(file)), Counted(name="plain")]) as pipeline:
        assert [r.report("counted").details["cached"] for r in pipeline.run_batch(["red", "sky"])] == [0, 0]
        result = pipeline.run("red")
    assert result.report("counted").details == {"cached": 4}
    assert result.report("plain").details == {"usage": {"documents": 4}}
    assert result.status == "ok"


def test_a_dry_run_counts_what_is_missing(file):
    """A dry run counts what is not in the cache, also of a closed stage, and creates no file."""
    pipeline = Pipeline([ListedSearch(documents=TEXTS), Counted(cache=str(file), top_k=3)])

    def planned(query):
        (result,) = pipeline.dry_run().run_batch([query])
        report = result.report("counted")
        return report.planned.get("documents"), report.details.get("cached")

    assert planned("red") == (5, None)
    assert not file.exists()
    with pipeline:
        pipeline.run("red")
        assert planned("red") == (None, 5)
        assert planned("blue") == (4, 0)
    assert planned("red") == (None, 5)
    assert planned("blue") == (4, 0)
    assert not pipeline.stages[1].is_open


def test_a_dry_run_that_cannot_look_counts_everything(file):
    """If a closed stage cannot make its keys, everything counts, with a warning."""

    class Shy(Counted):
        def identity(self):
            if not self.is_open:
                raise StageError("shy is not open")
            return {}

    with Shy(cache=str(file)) as stage:
        batch(stage, "red")
    (result,) = Pipeline([ListedSearch(), Shy(cache=str(file))]).dry_run().run_batch(["red"])
    assert result.report("counted").planned["documents"] == 4
    assert "so every text counts: shy is not open" in result.warnings[0]


def test_the_fields_that_count_are_those_that_nobody_calls_neutral(file):
    """A plugin's neutral fields add to those of its bases; all other fields count."""

    class Plugin(Counted):
        score_neutral = frozenset({"colour"})
        colour: str = "red"
        size: float = 1.0

    with Plugin(cache=str(file)) as stage:
        batch(stage, "red")
    for fields, known in (({"colour": "blue", "speed": 5, "timeout": 3.0}, 5), ({"size": 2.0}, 0)):
        with Plugin(cache=str(file), **fields) as stage:
            assert cached(batch(stage, "red")[1]) == [known]


def test_fields_and_identity_must_be_plain_data(file):
    """Fields and identity that are not plain data are refused when the stage opens."""

    class Odd(Counted):
        def identity(self):
            return {"model": object()}

    stage = Odd(cache=str(file))
    with pytest.raises(StageError, match=r"cache: the fields and identity\(\) of Odd must be plain data"):
        stage.open()
    assert not stage.is_open
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    database.close()


def test_a_set_is_the_same_in_every_order(file):
    """The order of a set does not change the key."""

    class Tagged(Counted):
        tags: frozenset[str] = frozenset()

    words = [f"word{number}" for number in range(20)]
    with Tagged(cache=str(file), tags=frozenset(words)) as stage:
        batch(stage, "red")
    with Tagged(cache=str(file), tags=frozenset(reversed(words))) as stage:
        assert cached(batch(stage, "red")[1]) == [5]


def test_event_loops_share_it(file, monkeypatch):
    """Four event loops in threads use the cache at the same time, each with several queries."""
    monkeypatch.setattr(store, "_PATIENCE", 30.0)  # however slow the machine is
    queries = [f"red {number}" for number in range(6)]

    async def main(stage):
        results = [[SearchResult(Query(query), [Hit(i, t, 0.0) for i, t in enumerate(TEXTS)])] for query in queries]
        contexts = [Context(Deadline(), 1) for _ in queries]
        done = await asyncio.gather(*map(stage.aprocess, results, contexts))
        return [ranking(result) for (result,) in done]

    with Counted(cache=str(file)) as stage, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: asyncio.run(main(stage)), range(4)))
        stage.asked.clear()
        assert asyncio.run(main(stage)) == found[0] == found[1] == found[2] == found[3]
        assert stage.asked == []
