"""The stages of a pipeline with their places in it; opening and closing them."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from milvus_pipeline.driver import adrive, drive
from milvus_pipeline.errors import PipelineError, StageError
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_parts

logger = logging.getLogger(__name__)


class PlacedStage(NamedTuple):
    """A stage of a pipeline.

    Args:
        stage: the stage.
        place: where it is, for messages: ``papers: stages[1] (bge)``.
        fallback: the stage that replaces it if it fails.
    """

    stage: Stage
    place: str
    fallback: PlacedStage | None

    def family(self) -> list[PlacedStage]:
        """This stage, its fallback, the fallback's fallback, and so on."""
        return [self, *(self.fallback.family() if self.fallback else ())]


def place_stages(pipeline: str, stages: Sequence[Stage]) -> tuple[PlacedStage, ...]:
    """Return the stages of a pipeline of this name with their places."""
    return tuple(_placed(stage, f"{pipeline}: stages[{position}]") for position, stage in enumerate(stages))


def _placed(stage: Stage, path: str) -> PlacedStage:
    fallback = None if stage.fallback is None else _placed(stage.fallback, f"{path}.on_error.fallback")
    return PlacedStage(stage, f"{path} ({stage.name})", fallback)


def open_stages(stages: Sequence[PlacedStage], timeout: float | None) -> None:
    """Open these stages, in their order.

    Args:
        stages: some of a pipeline's, or all.
        timeout: seconds that the server of each has to answer.

    Raises:
        StageError: a stage cannot be opened; those opened before it are closed again.
    """
    opened: list[Stage] = []
    for stage, place, _ in stages:
        try:
            stage.open(timeout)
        except BaseException as error:  # Ctrl-C too: nothing stays open
            for other in reversed(opened):
                with suppress(Exception):  # the first error is the one to report
                    other.close()
            if not isinstance(error, Exception):
                raise
            raise _lifecycle_error("opened", place, error) from error
        opened.append(stage)


def close_stages(stages: Sequence[PlacedStage]) -> None:
    """Close every one of these stages, even if one of them fails to.

    Raises:
        StageError: a stage could not be closed; the others are.
    """
    drive(_close_all(stages), lambda stage: stage.close())


async def aclose_stages(stages: Sequence[PlacedStage]) -> None:
    """``close_stages`` for an event loop; it uses a thread only if a stage has no other users."""

    async def close(stage: Stage) -> None:
        if not stage.release():
            await stage.aclose()

    await adrive(_close_all(stages), close)


def _close_all(stages: Sequence[PlacedStage]) -> Generator[Stage, None, None]:
    """Yield each stage to close, the last first. Raise the first error after that."""
    failed: tuple[str, Exception] | None = None
    for stage, place, _ in reversed(stages):
        try:
            yield stage
        except Exception as error:
            failed = failed or (place, error)
    if failed is not None:
        raise _lifecycle_error("closed", *failed) from failed[1]


def _lifecycle_error(verb: str, place: str, error: Exception) -> StageError:
    what, next_step = error_parts(error)
    code = error.reason_code if isinstance(error, PipelineError) else None
    return StageError(f"cannot be {verb}: {what}", next_step, place=place, reason_code=code)


@contextmanager
def log_stage_error() -> Iterator[None]:
    """Log that a run could not close the stages of a pipeline that was closed meanwhile: its results are still good."""
    try:
        yield
    except StageError as error:
        logger.warning("%s", error)
