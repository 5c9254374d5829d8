"""What a check of a pipeline finds, and what its stages tell each other meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Self, get_args

from milvus_pipeline.context import Deadline
from milvus_pipeline.errors import shown, told

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
            raise ValueError(f"level: must be one of {', '.join(get_args(Level))}, is {shown(self.level)}")
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
    def of(cls, fault: BaseException | str, topic: str, level: Level = "error", otherwise: str = _ADVICE) -> Self:
        """The finding that an exception or a message makes.

        Args:
            fault: messages of ours say what is wrong, a semicolon, and the next step.
            topic: what was looked at.
            level: how bad it is.
            otherwise: the next step where the message names none.
        """
        what, _, step = (fault if isinstance(fault, str) else told(fault)).partition("; ")
        return cls(level, topic, what, step.strip() or otherwise)

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
