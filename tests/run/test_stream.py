"""Any number of batches, with the stages overlapping: the results are those of one batch after another."""

import signal
import threading
from collections.abc import Sequence
from contextlib import closing
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milvus_pipeline import Fallback, Pipeline, PipelineError, Query, QueryError
from milvus_pipeline import context as deadline
from milvus_pipeline.plugin import Stage
from milvus_pipeline.run import loop as running
from milvus_pipeline.run import stream as streaming
from milvus_pipeline.run.lifecycle import place_stages
from support.fake_stages.basic import DOCUMENTS, Faulty, FirstOnly, GivenScores, ListedSearch, NeedsOpen, WordOverlap
from support.process_leaks import leaving_nothing

WAIT = 20.0
WORDS = ("red", "green", "plum", "late", "", "  ")


class Watched(Stage):
    """Calls a function of the test with the first text of each batch and the context."""

    type = "watched"

    def watch(self, what):
        """Set what is done in each call."""
        self.__dict__["what"] = what
        return self

    def process(self, results, context):
        """Leave the results as they are."""
        self.__dict__["what"](results[0].query.text, context)
        return results


def watched(name, what=lambda text, context: None, **fields):
    """A stage that does what the test says, and leaves the results as they are."""
    return Watched(name=name, **fields).watch(what)


def summary(result):
    """Everything of a result but the seconds; equality leaves out errors and sizes."""
    sizes = [report.batch_size for report in result.reports]
    return result, sizes, type(result.error), str(result.error)


def one_by_one(pipeline: Pipeline, batches: Sequence[Sequence[Any]], timeout: float | None) -> list[Any]:
    """The results of the batches one after another."""
    return [
        [summary(result) for result in pipeline.run_batch(batch, timeout=timeout, return_errors=True)]
        for batch in batches
    ]


def numbered(count: int) -> list[list[str]]:
    """Batches of one query each, whose text is the number of the batch."""
    return [[str(number)] for number in range(count)]


@st.composite
def stage_lists(draw: Any) -> list[Stage]:
    """Stages that fail on all, some or none of the queries, and then skip, raise or have a fallback."""
    outcomes = st.sampled_from(["raise", "skip", "fallback"])
    stages: list[Stage] = [ListedSearch(documents=draw(st.permutations(DOCUMENTS)))]
    for number in range(draw(st.integers(0, 4))):
        name, outcome = f"stage{number}", draw(outcomes)
        stand_in = draw(st.sampled_from([WordOverlap, Faulty]))(name=f"instead{number}", on_error="skip")
        fields: dict[str, Any] = {"name": name, "on_error": Fallback(stand_in) if outcome == "fallback" else outcome}
        kind = draw(st.sampled_from(["overlap", "word", "batch", "short", "scores", "first", "nothing"]))
        made = {
            "overlap": lambda f=fields: WordOverlap(weight=2.0, top_k=3, **f),
            "word": lambda f=fields: Faulty(how="word", word="red", **f),
            "batch": lambda f=fields: Faulty(**f),
            "short": lambda f=fields: Faulty(how="short", **f),
            "scores": lambda f=fields: GivenScores(scores=(1.0, None, float("nan"), 2.0), **f),
            "first": lambda f=fields: FirstOnly(**f),
            "nothing": lambda f=fields: watched(**f),
        }
        stages.append(made[kind]())
    return stages


queries = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join),
    st.builds(Query, text=st.sampled_from(WORDS), id=st.sampled_from([None, "a"])),
    st.just(7),
)


@given(stage_lists(), st.lists(st.lists(queries, max_size=4), max_size=7), st.sampled_from([None, 100.0, 0.0]))
@settings(max_examples=150, deadline=None)
def test_results_are_those_of_one_batch_after_another(stages, batches, timeout):
    """Hits, scores, statuses, reports, warnings and errors are the same, whatever fails; and so is the order."""
    with Pipeline(stages) as pipeline:
        expected = one_by_one(pipeline, batches, timeout)
        found = pipeline.run_batches(batches, timeout=timeout, return_errors=True)
        assert [[summary(result) for result in results] for results in found] == expected


@given(stage_lists(), st.lists(st.lists(queries, max_size=3), max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_first_error_is_raised_after_the_batches_before_it(stages, batches):
    """Without `return_errors` the results before the first error come first, then that error."""

    def outcome(answered):
        before = []
        try:
            for results in answered:
                before.append(list(map(summary, results)))  # noqa: PERF401 - what came before an error must be kept
        except PipelineError as error:
            return before, type(error), str(error)
        return before, None, ""

    with Pipeline(stages) as pipeline:
        expected = outcome(pipeline.run_batch(batch) for batch in batches)
        assert outcome(pipeline.run_batches(batches)) == expected


def test_a_batch_is_retrieved_while_the_one_before_is_reranked():
    """Each of two stages waits until the other works on the neighbouring batch."""
    both = threading.Barrier(2, timeout=WAIT)
    met = []

    def search(text, context):
        if text != "0":
            both.wait()

    def rerank(text, context):
        if text != "4":
            met.append(text)
            both.wait()

    stages = [watched("search", search), ListedSearch(), watched("rerank", rerank)]
    with leaving_nothing(), Pipeline(stages) as pipeline:
        assert [results[0].query.text for results in pipeline.run_batches(numbered(5))] == list("01234")
    assert met == list("0123")


def test_a_stage_takes_one_batch_at_a_time_in_their_order():
    """No stage gets two batches at once, or one before its turn."""
    seen = {name: [] for name in "abc"}
    at_work = dict.fromkeys("abc", 0)
    most = []

    def noting(name):
        def note(text, context):
            at_work[name] += 1
            most.append(at_work[name])
            seen[name].append(int(text))
            at_work[name] -= 1

        return note

    with Pipeline([watched(name, noting(name)) for name in "abc"]) as pipeline:
        assert len(list(pipeline.run_batches(numbered(50)))) == 50
    assert seen == {name: list(range(50)) for name in "abc"}
    assert set(most) == {1}


def test_it_reads_no_further_ahead_than_it_says():
    """It reads one batch for each stage that takes time, and one more."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield [str(read)]

    stages = [watched("a"), ListedSearch(), FirstOnly(), watched("b"), watched("c")]
    with Pipeline(stages) as pipeline, closing(pipeline.run_batches(endless())) as answered:
        for number, _ in zip(range(200), answered, strict=False):
            assert read == number + 5


class Text(str):
    """A string that can be referenced weakly."""


def test_memory_does_not_grow_with_the_number_of_batches():
    """Only queries that are under way are in memory."""
    alive = WeakSet()

    def many():
        for number in range(500):
            text = Text(f"query {number}")
            alive.add(text)
            yield [Query(text)]

    counts = []
    with Pipeline([ListedSearch(), WordOverlap()]) as pipeline:
        for results in pipeline.run_batches(many()):
            assert results[0].hits
            del results
            counts.append(len(alive))
    # Three under way, one that the stream gave last, and those that a thread or the source has in hand.
    assert max(counts) <= 7


def test_an_early_stop_leaves_nothing():
    """After `close` no thread is left, the running call was cancelled, no other began, and the stages are released."""
    begun, calls = threading.Event(), []

    def patient(text, context):
        calls.append(text)
        if text == "1":
            begun.set()
            while not context.cancelled:
                threading.Event().wait(0.001)

    stages = [ListedSearch(), watched("patient", patient), NeedsOpen()]
    with leaving_nothing():
        pipeline = Pipeline(stages)
        answered = pipeline.run_batches(numbered(10))
        assert next(answered)[0].hits
        assert begun.wait(WAIT)
        pipeline.close()
        assert all(stage.is_open for stage in stages)  # by the stream
        answered.close()
        assert of_streams() == []
        assert not any(stage.is_open for stage in stages)
    assert calls == ["0", "1"]
    assert next(answered, None) is None


def of_streams() -> list[str]:
    """The threads of streams."""
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("of a stream")]


def test_a_stage_that_was_given_up_is_not_stood_in_for():
    """After a cancellation neither a fallback nor another stage begins."""
    begun, after = threading.Event(), []

    def patient(text, context):
        begun.set()
        while True:
            context.check()

    fallback = watched("fallback", lambda text, context: after.append(text))
    first = watched("patient", patient, on_error=Fallback(fallback))
    with Pipeline([first, watched("next", lambda text, context: after.append(text))]) as pipeline:
        answered = pipeline.run_batches(one for one in [["0"], _raising(begun)])
        with pytest.raises(KeyboardInterrupt):
            next(answered)
    assert (after, of_streams()) == ([], [])


def _raising(begun: threading.Event) -> Any:
    class Raising(Sequence):
        def __len__(self):
            return 1

        def __getitem__(self, position):
            assert begun.wait(WAIT)
            raise KeyboardInterrupt

    return Raising()


def test_ctrl_c_ends_the_wait_for_a_batch():
    """Ctrl-C cancels the running call and ends its thread before KeyboardInterrupt is raised."""

    def interrupting(text, context):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        while not context.cancelled:
            threading.Event().wait(0.001)

    stages = [ListedSearch(), watched("interrupting", interrupting)]
    with leaving_nothing(), Pipeline(stages) as pipeline:
        with pytest.raises(KeyboardInterrupt):
            list(pipeline.run_batches(numbered(3)))
        assert of_streams() == []
        assert list(pipeline.run_batches([[]])) == [[]]


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("place", ["stage", "source"])
def test_what_no_result_can_report_is_raised_in_its_turn(place, stages):
    """A plugin's SystemExit and an error of the source end the iteration after the batches before them."""

    def source():
        yield from numbered(2)
        if place == "source":
            raise OSError("the disk is gone")
        yield from [["2"], ["3"]]

    def leaving(text, context):
        if text == "2":
            raise SystemExit(3)

    seen = []
    with leaving_nothing(), Pipeline([watched(f"stage{number}", leaving) for number in range(stages)]) as pipeline:
        with pytest.raises(OSError if place == "source" else SystemExit):
            seen.extend(results[0].query.text for results in pipeline.run_batches(source()))
        assert of_streams() == []
        with pytest.raises(QueryError, match="a list of queries"):
            list(pipeline.run_batches(["red", "green"], return_errors=True))
    assert seen == ["0", "1"]


def test_what_cannot_be_asked_is_refused_at_once():
    """Wrong arguments are refused before a batch is read; the stages open with the first batch."""
    pipeline = Pipeline([ListedSearch(), WordOverlap()])
    with pytest.raises(QueryError, match="timeout: must be a number"):
        pipeline.run_batches([], timeout="soon")
    with pytest.raises(TypeError, match="not iterable"):
        pipeline.run_batches(7)
    answered = pipeline.run_batches(numbered(1))
    assert not any(stage.is_open for stage in pipeline.stages)
    assert len(list(answered)) == 1
    assert all(stage.is_open for stage in pipeline.stages)
    pipeline.close()


def test_a_single_stage_needs_no_thread():
    """A single stage runs in the caller's thread; instant stages have no thread."""
    threads = []
    stage = watched("alone", lambda text, context: threads.append(threading.current_thread()))
    with Pipeline([stage, ListedSearch(name="search")][:1]) as pipeline:
        assert len(list(pipeline.run_batches(numbered(3)))) == 3
    assert set(threads) == {threading.current_thread()}
    parts = streaming._split(
        place_stages("p", [Instant(), ListedSearch(), FirstOnly(), FirstOnly(name="b"), WordOverlap()])
    )
    assert [[placed.stage.name for placed in part] for part in parts] == [
        ["instant", "listed_search", "first_only", "b"],
        ["word_overlap"],
    ]


class Instant(Stage):
    """Takes no time."""

    type = "instant"
    instant = True


def test_stages_see_the_context_variables_of_the_caller():
    """Each thread has a copy of the caller's context variables."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen = []

    def look(text, context):
        seen.append(variable.get())
        variable.set("changed")

    token = variable.set("given")
    try:
        with Pipeline([watched("a", look), watched("b", look)]) as pipeline:
            assert len(list(pipeline.run_batches(numbered(2)))) == 2
        assert variable.get() == "given"
    finally:
        variable.reset(token)
    assert sorted(seen) == ["changed", "changed", "given", "given"]


class Clock:
    """A clock that only the test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        time = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        for module in (deadline, running, streaming):
            monkeypatch.setattr(module, "time", time)

    def passes(self, seconds):
        """The work of a stage that takes this long."""

        def work(text, context):
            self.now += seconds

        return work


def test_the_time_of_a_batch_is_shared_by_its_stages(monkeypatch):
    """The stages share the time of a batch: one finishes late, and the one after it fails."""
    clock = Clock(monkeypatch)
    stages = [watched("a", clock.passes(6)), watched("b", clock.passes(6)), watched("c", on_error="skip")]
    with Pipeline(stages, timeout=10) as pipeline:
        ((result,),) = pipeline.run_batches([["red"]])
        expected = pipeline.run("red")
    assert summary(result) == summary(expected)
    assert [report.seconds for report in result.reports] == [6, 6, 0]
    assert result.warnings == ["b: finished after its time limit of 10 s"]
    assert [(reason.stage, reason.code) for reason in result.reasons] == [("c", "deadline")]


def test_the_time_that_a_batch_waits_for_its_turn_does_not_count(monkeypatch):
    """While the second batch waits, the first exceeds its time; the second has all of its time."""
    clock = Clock(monkeypatch)
    third_is_searched, first_is_ranked = threading.Event(), threading.Event()

    def search(text, context):
        if text == "0":
            clock.now += 1
        elif text == "1":
            clock.now += 2
        else:  # the second has left this stage
            third_is_searched.set()
            assert first_is_ranked.wait(WAIT)

    def rerank(text, context):
        if text == "0":
            assert third_is_searched.wait(WAIT)
            clock.now += 100
            first_is_ranked.set()
        elif text == "1":
            clock.now += 3
            assert context.deadline.remaining() == 5

    with Pipeline([watched("search", search), watched("rerank", rerank)]) as pipeline:
        first, second, _ = pipeline.run_batches(numbered(3), timeout=10, return_errors=True)
    assert first[0].warnings == ["rerank: finished after its time limit of 10 s"]
    assert (second[0].status, second[0].warnings) == ("ok", [])
    assert [report.seconds for report in second[0].reports] == [2, 3]
