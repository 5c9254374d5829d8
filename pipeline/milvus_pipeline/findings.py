"""The findings of a check, the facts that stages share in it, and the doctors that examine the stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final, Literal, Self, TypeVar, get_args

from milvus_pipeline.context import Deadline
from milvus_pipeline.errors import PipelineError, StageError
from milvus_pipeline.text import error_text, short_repr

logger = logging.getLogger(__name__)

DOCTORS: Final = "milvus_pipeline.doctors"
"""The entry point group of modules that register doctors."""

Level = Literal["ok", "warning", "error"]

_ADVICE: Final = "check the fields of this stage"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check.

    Args:
        level: "ok", "warning" (queries run, but perhaps not as well as they could), or "error" (the stage fails).
        topic: what was checked, in a word or two, such as "dimension".
        message: what was found.
        next_step: what to do about it; empty if all is well.
        stage: name of the stage; the pipeline fills it.

    Raises:
        ValueError: there is no such level, or another argument is not a string.
    """

    level: Level
    topic: str
    message: str
    next_step: str = ""
    stage: str = ""

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level: must be one of {', '.join(get_args(Level))}, got {short_repr(self.level)}")
        for name in ("topic", "message", "next_step", "stage"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: must be a string, got {type(getattr(self, name)).__name__}")

    @classmethod
    def ok(cls, topic: str, message: str) -> Self:
        """Return the finding that all is well."""
        return cls("ok", topic, message)

    @classmethod
    def warning(cls, topic: str, message: str, next_step: str) -> Self:
        """Return the finding that queries run, but perhaps not as well as they could."""
        return cls("warning", topic, message, next_step)

    @classmethod
    def error(cls, topic: str, message: str, next_step: str) -> Self:
        """Return the finding that queries fail."""
        return cls("error", topic, message, next_step)

    @classmethod
    def of(cls, error: BaseException, topic: str, level: Level = "error", next_step: str = _ADVICE) -> Self:
        """Return the finding of an exception.

        Args:
            error: one of ours gives its ``what`` and ``next_step``, but not its place: a finding has its own.
            topic: what was checked.
            level: how bad it is.
            next_step: used if the exception has none.
        """
        if isinstance(error, PipelineError):
            what, own_step = error.parts()
            return cls(level, topic, what, own_step or next_step)
        return cls(level, topic, error_text(error), next_step)

    def to_dict(self) -> dict[str, str]:
        """Return the finding as plain data."""
        return asdict(self)


@dataclass
class CheckContext:
    """What a stage may do in a check, and the facts that stages share with those behind them.

    Args:
        deadline: when the stage's check has to be done; pass ``deadline.remaining()`` to every call of a server.
        send: requests that may cost something are allowed.

    Attributes:
        dim: length of the encoder's vectors; None if no stage encodes.
        dim_of: the encoder's name and model, for messages.
        texts: a sample of the texts in the collection.
        documents: number of documents in the collection.
        hits: the most hits that a query brings to the stage; None if that is unknown.
        hits_of: the stage and the field that limit them.
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

    The function takes the stage and a ``CheckContext`` and returns or yields findings; a ``StageError`` that it raises
    is its last one, under the error's place. Put its module into an entry point of the group
    ``milvus_pipeline.doctors``: it is then imported only for a check, and not by the stage.

    Args:
        stage: the class.
    """

    def register(examine: Examination) -> Examination:
        def findings(stage: Any, context: CheckContext) -> Iterator[Finding]:
            try:
                yield from examine(stage, context)
            except StageError as error:
                yield Finding.of(error, error.place or "check")

        _doctors[stage] = findings
        return examine

    return register


def doctor_of(stage: type) -> Doctor | None:
    """Return the doctor of the class or of its nearest base that has one."""
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
    """Return ``12 of 200 sampled documents (6 %, about 1,200 in all)``.

    Args:
        count: number of documents of the sample.
        sampled: size of the sample, at least 1.
        documents: size of the collection; 0 if unknown.
    """
    share = count / sampled
    about = f", about {round(share * documents):,} in all" if documents else ""
    return f"{count} of {sampled} sampled documents ({100 * share:.0f} %{about})"
