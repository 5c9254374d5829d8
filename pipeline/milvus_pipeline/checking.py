"""The check of a pipeline: its stages in their order, what they tell each other, and what does not fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from milvus_pipeline.checks import CheckContext, Finding
from milvus_pipeline.deadline import Deadline
from milvus_pipeline.errors import told
from milvus_pipeline.fit import misfits, widths
from milvus_pipeline.running import repeats
from milvus_pipeline.stage import Stage

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
        said = f"{type(error).__name__}, whose message repeats a document and is left out" if leak else told(error)
        advice = "see the message; if it is none of your doing, tell the stage's author"
        yield Finding("error", "check", f"the check itself failed: {said}", advice, stage.name)
