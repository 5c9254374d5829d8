"""`Pipeline.check`: the findings of the stages, and whether the stages fit together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest

from milvus_pipeline import Fallback, Pipeline, StageError
from milvus_pipeline.plugin import CheckContext, Finding, Stage
from support.fake_stages.basic import ListedSearch, WordOverlap


class Limited(ListedSearch):
    """A retrieval stage with a limit, which shares a fact."""

    limit: int = 10

    def check(self, context: CheckContext) -> Iterable[Finding]:
        context.texts = ["a text"]
        yield Finding.ok("rows", "7")


class Noting(WordOverlap):
    """A stage that reports the facts it gets."""

    def check(self, context: CheckContext) -> Iterable[Finding]:
        yield Finding.ok("noted", f"{context.hits} by {context.hits_of or 'none'}, {list(context.texts)}")


class Broken(Stage):
    """A stage whose check fails after its time is over."""

    def check(self, context: CheckContext) -> Iterable[Finding]:
        yield Finding.ok("first", "fine")
        time.sleep(0.2)
        assert context.deadline.expired
        raise StageError("the thing is gone; put it back")


class Odd(Limited):
    """A stage whose check yields or raises what the test gives it."""

    given: Any = None

    def check(self, context: CheckContext) -> Iterable[Finding]:
        context.texts = ["a document of a patient"]
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def found(stages: list[Stage], **others: Any) -> list[tuple[str, str, str]]:
    """Stage, level and topic of what a check finds."""
    checked = Pipeline(stages, **others).check(timeout=0.1)
    assert all(one.next_step or one.level == "ok" for one in checked)
    return [(one.stage, one.level, one.topic) for one in checked]


def test_each_stage_has_its_own_time_and_a_failure_is_a_finding():
    """A check that fails keeps its findings so far, and does not affect the other stages."""
    assert found([Limited(name="search"), Broken(name="broken"), Noting(name="noting")]) == [
        ("search", "ok", "rows"),
        ("broken", "ok", "first"),
        ("broken", "error", "check"),
        ("noting", "ok", "noted"),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "TypeError: 'NoneType' object is not iterable"),
        (["text"], "TypeError: a str is not a Finding"),
        ((Finding(level, "topic", "message") for level in ["fatal"]), "ValueError: level: must be one of ok"),
        ((Finding("ok", "topic", message) for message in [None]), "ValueError: message: must be a string, got None"),
        (ValueError("cannot read 'a document of a patient'"), "ValueError, whose message repeats a document"),
    ],
)
def test_a_check_that_gives_something_else_is_reported(given, said):
    """Whatever a plugin's check does, the finding is valid and contains no document."""
    odd, noted = Pipeline([Odd(given=given), Noting()]).check()
    assert (odd.level, odd.topic, noted.topic) == ("error", "check", "noted")
    assert odd.message.startswith(f"the check itself failed: {said}")


def test_stages_learn_what_comes_to_them():
    """The number of hits follows limit and top_k; a fallback gets as many as the stage it replaces."""
    pipeline = Pipeline(
        [
            Limited(name="search", limit=50),
            Noting(name="first", top_k=20, on_error=Fallback(Noting(name="spare", top_k=5))),
            Noting(name="second"),
        ]
    )
    said = {one.stage: one.message for one in pipeline.check()}
    assert said["first"] == said["spare"] == "50 by `limit` of search, ['a text']"
    assert said["second"] == "20 by `top_k` of first, ['a text']"
    (alone,) = Pipeline([ListedSearch(), Noting()]).check()
    assert alone.message == "None by none, []"


class Sized(Stage):
    """A stage that reports the length of its vectors, if it knows it."""

    size: int | None = None

    def check(self, context: CheckContext) -> Iterable[Finding]:
        if self.size is not None:
            context.dim, context.dim_of = self.size, self.name
        yield Finding.ok("model", "here")


@pytest.mark.parametrize(("own", "said"), [(3, "3 of own"), (None, "4 of spare")])
def test_a_fallback_does_not_speak_for_the_stage_before_it(own, said):
    """A fallback's facts count only if the stage before it left none."""

    class Comparing(ListedSearch):
        def check(self, context: CheckContext) -> Iterable[Finding]:
            yield Finding.ok("dimension", f"{context.dim} of {context.dim_of}")

    stages = [Sized(name="own", size=own, on_error=Fallback(Sized(name="spare", size=4))), Comparing(name="search")]
    assert Pipeline(stages).check()[-1].message == said


def test_a_cut_that_cuts_nothing_gets_a_warning():
    """A top_k above the number of incoming hits gets a warning; an equal one does not."""
    stages = [Limited(name="search", limit=10), WordOverlap(name="a", top_k=10), WordOverlap(name="b", top_k=11)]
    assert found(stages) == [("search", "ok", "rows"), ("b", "warning", "top_k")]
    (finding,) = [one for one in Pipeline(stages).check() if one.level == "warning"]
    assert finding.message == "top_k is 11, but at most 10 hits come here (`limit` of search), so it cuts nothing"


def test_a_fallback_without_time_gets_a_warning():
    """A fallback that would have no time left gets a warning."""

    def chain(first: float | None, second: float | None) -> list[Stage]:
        third = WordOverlap(name="third")
        spare = WordOverlap(name="second", timeout=second, on_error=Fallback(third))
        return [ListedSearch(), WordOverlap(name="first", timeout=first, on_error=Fallback(spare))]

    warned = ("warning", "timeout")
    assert found(chain(1.0, 1.0), timeout=3.0) == []
    assert found(chain(3.0, 1.0), timeout=3.0) == [("first", *warned)]
    assert found(chain(None, 1.0), timeout=3.0) == [("first", *warned)]
    assert found(chain(2.0, 1.0), timeout=3.0) == [("second", *warned)]
    assert found(chain(None, None)) == []


def test_a_finding_is_made_of_an_error():
    """It takes what is wrong and the next step; an error without a next step gets the one given."""
    made = Finding.of(StageError("there is no index", "make one; or another", place="things"), "index")
    assert (made.level, made.message, made.next_step) == ("error", "there is no index", "make one; or another")
    assert Finding.of(KeyError("x"), "index", "warning").next_step
    slow = Finding.of(StageError("it is slow"), "speed", "warning", "buy a faster one")
    assert (slow.message, slow.next_step) == ("it is slow", "buy a faster one")


def test_cancelling_a_check_ends_it_with_the_stage_that_it_is_at():
    """After a cancellation no other stage is checked."""
    looked, began, go = [], threading.Event(), threading.Event()

    class Looks(ListedSearch):
        """A stage whose check takes its time."""

        type = "looks"

        def check(self, context):
            """Find nothing."""
            looked.append(self.name)
            began.set()
            go.wait(20)
            return ()

    async def run():
        task = asyncio.create_task(Pipeline([Looks(), Looks(name="behind")]).acheck())
        assert await asyncio.to_thread(began.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(run())
    assert looked == ["looks"]
