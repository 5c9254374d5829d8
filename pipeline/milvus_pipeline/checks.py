"""What a check of a pipeline finds, and what its stages tell each other meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from milvus_pipeline.deadline import Deadline

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check looked at.

    Args:
        level: "ok", "warning" (queries run, but maybe not as well as they could), or "error" (they fail).
        topic: what was looked at, in a word or two, such as "dimension".
        message: what was found.
        next_step: what to do about it; empty where all is well.
        stage: name of the stage; filled by the pipeline.
    """

    level: Level
    topic: str
    message: str
    next_step: str = ""
    stage: str = ""

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
        deadline: when the check has to be done; pass ``deadline.remaining()`` to every call of a server.
        send: requests that may be paid for are allowed.

    Attributes:
        dim: length of the vectors that the encoder gives; None where no stage encodes.
        dim_of: the encoder's name and model, for messages.
        texts: a sample of the texts that the collection holds.
        documents: how many it holds in all.
    """

    deadline: Deadline
    send: bool = False
    dim: int | None = None
    dim_of: str = ""
    texts: Sequence[str] = field(default_factory=tuple)
    documents: int = 0
