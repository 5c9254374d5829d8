"""Opening and closing the stages of a pipeline, all of them or some; and where each one stands in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from milvus_pipeline.errors import PipelineError, StageError
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text

logger = logging.getLogger(__name__)


class Life:
    """Opens and closes stages, and says of a failure which stage of which pipeline it was.

    Args:
        name: the pipeline's.
        stages: all of the pipeline's stages, by which a stage has its place.

    Attributes:
        places: of every stage, by its name; see ``places``.
    """

    def __init__(self, name: str, stages: Sequence[Stage]) -> None:
        self.places = places(name, stages)

    def open(self, stages: Sequence[Stage], timeout: float | None) -> None:
        """Open these stages, in their order.

        Args:
            stages: some of the pipeline's, or all.
            timeout: seconds that the server of each has to answer.

        Raises:
            StageError: a stage cannot be opened; those opened before it are closed again.
        """
        opened: list[Stage] = []
        for stage in stages:
            try:
                stage.open(timeout)
            except BaseException as error:  # Ctrl-C too: nothing stays open
                for done in reversed(opened):
                    with suppress(Exception):  # the first error is the one to tell
                        done.close()
                if not isinstance(error, Exception):
                    raise
                code = error.reason_code if isinstance(error, PipelineError) else None
                message = f"{self.places[stage.name]} cannot be opened: {error_text(error)}"
                raise StageError(message, reason_code=code) from error
            opened.append(stage)

    def close(self, stages: Sequence[Stage]) -> None:
        """Give every one of these stages back, also where one of them fails to close.

        Raises:
            StageError: a stage could not be closed; the others are.
        """
        errors = []
        for stage in reversed(stages):
            try:
                stage.close()
            except Exception as error:
                errors.append((stage, error))
        self._raise_unclosed(errors)

    async def aclose(self, stages: Sequence[Stage]) -> None:
        """``close`` for an event loop; leaves it for a thread only where a stage is really closed."""
        errors = []
        for stage in reversed(stages):
            try:
                if not stage.release():
                    await stage.aclose()
            except Exception as error:
                errors.append((stage, error))
        self._raise_unclosed(errors)

    def _raise_unclosed(self, errors: list[tuple[Stage, Exception]]) -> None:
        for stage, error in errors:
            raise StageError(f"{self.places[stage.name]} cannot be closed: {error_text(error)}") from error


def places(name: str, stages: Sequence[Stage]) -> dict[str, str]:
    """Pipeline, place and stage, to lead a message, by the stage's name; fallbacks have theirs behind their stage's."""
    found = {}
    for position, stage in enumerate(stages):
        at = f"{name}: stages[{position}]"
        for member in stage.family():
            found[member.name] = f"{at} ({member.name})"
            at += ".on_error.fallback"
    return found


@contextmanager
def unclosed_told() -> Iterator[None]:
    """A run whose pipeline was closed meanwhile closes the stages; if that fails, its answer is good all the same."""
    try:
        yield
    except StageError as error:
        logger.warning("%s", error)
