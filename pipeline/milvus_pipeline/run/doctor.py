"""The check of a pipeline: its stages one by one, and whether their numbers and times fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from milvus_pipeline.context import Deadline
from milvus_pipeline.findings import CheckContext, Finding
from milvus_pipeline.run.loop import safe_parts
from milvus_pipeline.stage import Stage

CHECK_SECONDS = 10.0
"""How long the servers of a stage have to answer in a check by default."""


def examine(
    stages: Sequence[Stage], timeout: float | None, seconds: float | None, *, send: bool
) -> Iterator[list[Finding]]:
    """Yield the findings of each stage, followed by its fallbacks.

    Args:
        stages: the pipeline's.
        timeout: the pipeline's.
        seconds: that the servers of each stage have to answer.
        send: requests that may cost something are allowed.
    """
    context = CheckContext(Deadline(), send=send)
    incoming, fit = widths(stages), misfits(stages, timeout)
    for stage in stages:
        for member in stage.family():
            context.deadline = Deadline.after(seconds)  # one dead server takes no time from the other stages
            context.hits, context.hits_of = incoming[member.name] or (None, "")
            before = replace(context)
            found = list(_checked(member, context))
            if member is not stage:
                # What the fallback replaced: its facts count only if the stage before it left none.
                if before.dim is not None:
                    context.dim, context.dim_of = before.dim, before.dim_of
                if before.texts:
                    context.texts, context.documents = before.texts, before.documents
            yield [*found, *(finding for finding in fit if finding.stage == member.name)]


def _checked(stage: Stage, context: CheckContext) -> Iterator[Finding]:
    """What the check of a stage finds; if it fails, or yields something else, that is a finding, too."""
    try:
        for finding in stage.check(context):
            if not isinstance(finding, Finding):
                raise TypeError(f"a {type(finding).__name__} is not a Finding")
            yield replace(finding, stage=stage.name)
    except Exception as error:
        what, step = safe_parts(error, [text for text in context.texts or () if isinstance(text, str)])
        step = step or "report it to the author of the stage"
        yield Finding("error", "check", f"the check itself failed: {what}", step, stage.name)


# -- whether stages fit together --------------------------------------------------------------------------------------


class Width(NamedTuple):
    """The most hits that a query brings to a stage, and the field of which stage limits them."""

    hits: int
    of: str


def widths(stages: Sequence[Stage]) -> dict[str, Width | None]:
    """Return how many hits come to each stage and each fallback, by name; None if that is unknown."""
    found: dict[str, Width | None] = {}
    width: Width | None = None
    for stage in stages:
        for member in stage.family():
            found[member.name] = width
        width = _after(stage, width)
    return found


def misfits(stages: Sequence[Stage], timeout: float | None) -> list[Finding]:
    """Return warnings of settings that two stages together, or a stage and the pipeline's ``timeout``, make useless.

    Args:
        stages: the pipeline's.
        timeout: the pipeline's, in seconds; None for no limit.
    """
    incoming = widths(stages)
    found: list[Finding] = []
    for stage in stages:
        for member in stage.family():
            found.extend(_useless_cut(member, incoming[member.name]))
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


def _useless_cut(stage: Stage, before: Width | None) -> Iterator[Finding]:
    top_k = _number(stage, "top_k")
    if top_k is not None and before is not None and top_k > before.hits:
        yield Finding(
            "warning",
            "top_k",
            f"top_k is {top_k:,}, but at most {before.hits:,} hits come here ({before.of}), so it cuts nothing",
            f"raise {before.of} to {top_k:,} or more, or lower top_k",
            stage.name,
        )


def _no_time_left(stage: Stage, timeout: float) -> Iterator[Finding]:
    spent = 0.0
    for member in stage.family():
        if member.fallback is None:
            return
        spent += timeout if member.timeout is None else member.timeout
        if spent >= timeout:
            own = "has no `timeout`" if member.timeout is None else f"has `timeout: {member.timeout:g}`"
            yield Finding(
                "warning",
                "timeout",
                f"it {own}, and a call {timeout:g} s in all: if it does not answer, its fallback "
                f"{member.fallback.name} has no time left",
                f"set `timeout` of {member.name} well below {timeout:g}, or raise that of the pipeline",
                member.name,
            )
            return


def _number(stage: Stage, field: str) -> int | None:
    value = getattr(stage, field, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
