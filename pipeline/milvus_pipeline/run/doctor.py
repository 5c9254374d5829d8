"""Whether the numbers of stages go together: how many hits each hands on, how much time each leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from milvus_pipeline.context import Deadline
from milvus_pipeline.findings import CheckContext, Finding
from milvus_pipeline.run.loop import repeats
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text


class Width(NamedTuple):
    """How many hits a query brings to a stage, at most, and which field of which stage says so."""

    hits: int
    of: str


def widths(stages: Sequence[Stage]) -> dict[str, Width | None]:
    """How many hits come to each stage, and to each fallback, by name; None where that cannot be known."""
    found: dict[str, Width | None] = {}
    width: Width | None = None
    for stage in stages:
        for each in stage.family():
            found[each.name] = width
        width = _after(stage, width)
    return found


def misfits(stages: Sequence[Stage], timeout: float | None) -> list[Finding]:
    """What two stages together, or a stage and the pipeline's ``timeout``, make of no use.

    Args:
        stages: the pipeline's.
        timeout: the pipeline's, in seconds; None for none.

    Returns:
        Warnings, each with the name of its stage.
    """
    coming = widths(stages)
    found: list[Finding] = []
    for stage in stages:
        for each in stage.family():
            found.extend(_idle_cut(each, coming[each.name]))
        if timeout is not None:
            found.extend(_no_time_left(stage, timeout))
    return found


def _after(stage: Stage, before: Width | None) -> Width | None:
    limit, top_k = _number(stage, "limit"), _number(stage, "top_k")
    if "hits" in stage.provides():
        return None if limit is None else Width(limit, f"`limit` of {stage.name}")
    if top_k is None or (before is not None and before.hits <= top_k):
        return before
    return Width(top_k, f"`top_k` of {stage.name}")


def _idle_cut(stage: Stage, before: Width | None) -> Iterator[Finding]:
    top_k = _number(stage, "top_k")
    if top_k is not None and before is not None and top_k > before.hits:
        yield Finding(
            "warning",
            "top_k",
            f"top_k is {top_k:,}, but no more than {before.hits:,} hits come here ({before.of}), so it cuts nothing",
            f"raise {before.of} to {top_k:,} or more, or lower top_k",
            stage.name,
        )


def _no_time_left(stage: Stage, timeout: float) -> Iterator[Finding]:
    spent = 0.0
    for each in stage.family():
        if each.fallback is None:
            return
        spent += timeout if each.timeout is None else each.timeout
        if spent >= timeout:
            own = "no `timeout` of its own" if each.timeout is None else f"`timeout: {each.timeout:g}`"
            yield Finding(
                "warning",
                "timeout",
                f"it has {own}, and a call {timeout:g} s in all: where it does not answer, its fallback "
                f"{each.fallback.name} has no time left",
                f"set `timeout` of {each.name} well below {timeout:g}, or raise that of the pipeline",
                each.name,
            )
            return


def _number(stage: Stage, field: str) -> int | None:
    value = getattr(stage, field, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


CHECK_SECONDS = 10.0
"""The servers of a stage have so long to answer in a check, unless it is told otherwise."""


def checking(
    stages: Sequence[Stage], timeout: float | None, seconds: float | None, send: bool
) -> Iterator[list[Finding]]:
    """What is found of each stage, followed by its fallbacks, one list a stage.

    Args:
        stages: the pipeline's.
        timeout: the pipeline's.
        seconds: that the servers of each stage have to answer.
        send: requests that may be paid for are allowed.
    """
    context = CheckContext(Deadline(), send=send)
    coming, together = widths(stages), misfits(stages, timeout)
    for stage in stages:
        for member in stage.family():
            context.deadline = Deadline.after(seconds)  # one dead server takes nothing from the other stages
            context.hits, context.hits_of = coming[member.name] or (None, "")
            before = replace(context)
            found = list(_found(member, context))
            if member is not stage:
                _restore(context, before)
            yield [*found, *(finding for finding in together if finding.stage == member.name)]


def _restore(context: CheckContext, before: CheckContext) -> None:
    """Put back what a fallback has replaced: its facts count where the stage that it stands in for left none."""
    if before.dim is not None:
        context.dim, context.dim_of = before.dim, before.dim_of
    if before.texts:
        context.texts, context.documents = before.texts, before.documents


def _found(stage: Stage, context: CheckContext) -> Iterator[Finding]:
    """What the check of a stage finds; that it fails, or gives something else, is a finding, too."""
    try:
        for finding in stage.check(context):
            if not isinstance(finding, Finding):
                raise TypeError(f"{type(finding).__name__} is no Finding")
            yield replace(finding, stage=stage.name)
    except Exception as error:
        leak = repeats(error, [text for text in context.texts or () if isinstance(text, str)])
        said = (
            f"{type(error).__name__}, whose message repeats a document and is left out" if leak else error_text(error)
        )
        advice = "see the message; if it is none of your doing, tell the stage's author"
        yield Finding("error", "check", f"the check itself failed: {said}", advice, stage.name)
