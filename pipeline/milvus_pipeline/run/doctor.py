"""The check of a pipeline: its stages one by one, and whether their numbers and times fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

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
    for stage in stages:
        incoming = context.hits, context.hits_of
        for member in stage.family():
            context.deadline = Deadline.after(seconds)  # one dead server takes no time from the other stages
            before = replace(context)
            found = [*_checked(member, context), *_useless_cut(member, context)]
            if timeout is not None and _leaves_no_time(stage, member, timeout):
                found.append(_no_time_left(member, timeout))
            if member is not stage:
                # The facts of a fallback count only if the stage before it left none.
                if before.dim is not None:
                    context.dim, context.dim_of = before.dim, before.dim_of
                if before.texts:
                    context.texts, context.documents = before.texts, before.documents
            context.hits, context.hits_of = incoming
            yield found
        _pass_on(stage, context)


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


def _pass_on(stage: Stage, context: CheckContext) -> None:
    """Note how many hits the stage passes on, at most, and which field limits them."""
    limit, top_k = _number(stage, "limit"), _number(stage, "top_k")
    if "hits" in stage.provides():
        context.hits, context.hits_of = limit, "" if limit is None else f"`limit` of {stage.name}"
    elif top_k is not None and (context.hits is None or top_k < context.hits):
        context.hits, context.hits_of = top_k, f"`top_k` of {stage.name}"


def _useless_cut(stage: Stage, context: CheckContext) -> Iterator[Finding]:
    top_k, hits, hits_of = _number(stage, "top_k"), context.hits, context.hits_of
    if top_k is not None and hits is not None and top_k > hits:
        yield Finding(
            "warning",
            "top_k",
            f"top_k is {top_k:,}, but at most {hits:,} hits come here ({hits_of}), so it cuts nothing",
            f"raise {hits_of} to {top_k:,} or more, or lower top_k",
            stage.name,
        )


def _leaves_no_time(stage: Stage, member: Stage, timeout: float) -> bool:
    """Whether the stage and its fallbacks up to this member may use up all the time, and another fallback is left."""
    family = stage.family()
    spent = accumulate(timeout if each.timeout is None else each.timeout for each in family[:-1])
    first = next((each for each, seconds in zip(family, spent, strict=False) if seconds >= timeout), None)
    return first is member


def _no_time_left(stage: Stage, timeout: float) -> Finding:
    own = "has no `timeout`" if stage.timeout is None else f"has `timeout: {stage.timeout:g}`"
    fallback = stage.fallback.name if stage.fallback else ""
    return Finding(
        "warning",
        "timeout",
        f"it {own}, and a call {timeout:g} s in all: if it does not answer, its fallback {fallback} has no time left",
        f"set `timeout` of {stage.name} well below {timeout:g}, or raise that of the pipeline",
        stage.name,
    )


def _number(stage: Stage, field: str) -> int | None:
    value = getattr(stage, field, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
