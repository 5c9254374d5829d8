"""Whether the numbers of stages go together: how many hits each hands on, how much time each leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from milvus_pipeline.checks import Finding
from milvus_pipeline.stage import Stage


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
