"""What a check of a pipeline finds, what its stages tell each other meanwhile, and the doctors that examine them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final, Literal, Self, TypeVar, get_args

from milvus_pipeline.context import Deadline
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.text import error_text, short_repr

logger = logging.getLogger(__name__)

DOCTORS: Final = "milvus_pipeline.doctors"
"""The entry point group of modules that register doctors."""

Level = Literal["ok", "warning", "error"]

_ADVICE: Final = "see what the message says, and check this stage's fields"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check looked at.

    Args:
        level: "ok", "warning" (queries run, but maybe not as well as they could), or "error" (the stage fails).
        topic: what was looked at, in a word or two, such as "dimension".
        message: what was found.
        next_step: what to do about it; empty where all is well.
        stage: name of the stage; filled by the pipeline.

    Raises:
        ValueError: there is no such level, or one of the others is no text.
    """

    level: Level
    topic: str
    message: str
    next_step: str = ""
    stage: str = ""

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level: must be one of {', '.join(get_args(Level))}, is {short_repr(self.level)}")
        for name in ("topic", "message", "next_step", "stage"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: must be a text, is {type(getattr(self, name)).__name__}")

    @classmethod
    def ok(cls, topic: str, message: str) -> Self:
        """That all is well."""
        return cls("ok", topic, message)

    @classmethod
    def warning(cls, topic: str, message: str, next_step: str) -> Self:
        """That queries run, but maybe not as well as they could."""
        return cls("warning", topic, message, next_step)

    @classmethod
    def error(cls, topic: str, message: str, next_step: str) -> Self:
        """That queries fail."""
        return cls("error", topic, message, next_step)

    @classmethod
    def of(cls, error: BaseException, topic: str, level: Level = "error", next_step: str = _ADVICE) -> Self:
        """The finding that an exception makes.

        Args:
            error: what and next step of one of ours are taken over, its place is not: a finding has its own.
            topic: what was looked at.
            level: how bad it is.
            next_step: taken if the exception names none.
        """
        if isinstance(error, PipelineError):
            what, own_step = error.parts()
            return cls(level, topic, what, own_step or next_step)
        return cls(level, topic, error_text(error), next_step)

    def to_dict(self) -> dict[str, str]:
        """The finding as plain data."""
        return {
            "stage": self.stage,
            "level": self.level,
            "topic": self.topic,
            "message": self.message,
            "next_step": self.next_step,
        }


@dataclass
class CheckContext:
    """What a stage may do in a check, and the facts that stages leave for those behind them.

    Args:
        deadline: when the stage's check has to be done; pass ``deadline.remaining()`` to every call of a server.
        send: requests that may be paid for are allowed.

    Attributes:
        dim: length of the vectors that the encoder gives; None where no stage encodes.
        dim_of: the encoder's name and model, for messages.
        texts: a sample of the texts that the collection holds.
        documents: how many it holds in all.
        hits: how many hits a query brings to the stage, at most; None where that cannot be known beforehand.
        hits_of: the stage and the field that say so.
    """

    deadline: Deadline
    send: bool = False
    dim: int | None = None
    dim_of: str = ""
    texts: Sequence[str] = field(default_factory=tuple)
    documents: int = 0
    hits: int | None = None
    hits_of: str = ""


Doctor = Callable[[Any, CheckContext], Iterable[Finding]]
Examination = TypeVar("Examination", bound=Doctor)

_doctors: dict[type, Doctor] = {}


def doctor(stage: type) -> Callable[[Examination], Examination]:
    """Decorator: register a function as the doctor of a class of stages and of its subclasses.

    The function takes the stage and a ``CheckContext`` and gives findings. Its module is imported only for a check, if
    an entry point of the group ``milvus_pipeline.doctors`` names it; a stage does not import what examines it.

    Args:
        stage: the class.
    """

    def register(examine: Examination) -> Examination:
        _doctors[stage] = examine
        return examine

    return register


def doctor_of(stage: type) -> Doctor | None:
    """The doctor of the class or of its nearest base that has one."""
    _load_doctors()
    return next((_doctors[base] for base in stage.__mro__ if base in _doctors), None)


@cache
def _load_doctors() -> None:
    for entry in entry_points(group=DOCTORS):
        try:
            entry.load()
        except Exception as error:  # one broken plugin must not take the checks of all stages with it
            logger.warning("the doctor %s cannot be loaded: %s", entry.value, error_text(error))


def share_text(count: int, sampled: int, documents: int) -> str:
    """``12 of 200 sampled documents (6 %, about 1,200 in all)``.

    Args:
        count: documents of the sample that are meant.
        sampled: size of the sample, at least 1.
        documents: size of the collection; 0 if unknown.
    """
    share = count / sampled
    about = f", about {round(share * documents):,} in all" if documents else ""
    return f"{count} of {sampled} sampled documents ({100 * share:.0f} %{about})"
