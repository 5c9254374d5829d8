"""The contract of a stage: what a plugin author reads first.

A stage *is* its configuration: a frozen pydantic model, checked the same from Python and from YAML. What it opens
(clients, models) is private state, made in ``setup`` and let go in ``teardown``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from milvus_pipeline.context import Context, Deadline
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.findings import CheckContext, Finding, doctor_of
from milvus_pipeline.problems import kind_of, near_miss, problems_of, takes_bool, word_of
from milvus_pipeline.records import SearchResult


@dataclass(frozen=True)
class Fallback:
    """What stands in for a stage that failed: ``on_error=Fallback(BGE())``, or in YAML ``on_error: {fallback: {...}}``.

    The fallback gets the hits as they were before the stage that failed, the queries that failed alone, and what is
    left of their time; the ``timeout`` of the stage before it is what leaves it some. Its own ``on_error`` says what
    its own failure does, so that a chain of them ends in "raise" or "skip". It opens with the pipeline.

    Args:
        stage: the one that stands in.
    """

    stage: Stage


def _checked_on_error(value: Any) -> str | Fallback:
    if isinstance(value, Mapping) and set(value) == {"fallback"}:
        if not isinstance(value["fallback"], Stage):
            raise ConfigError(f"must be a stage, got {kind_of(value['fallback'])}", place="fallback")
        return Fallback(value["fallback"])
    if isinstance(value, Fallback):
        if not isinstance(value.stage, Stage):
            raise ConfigError(f"must be a stage, got {kind_of(value.stage)}", place="fallback")
        return value
    if isinstance(value, str) and value in ("raise", "skip"):
        return value
    near = near_miss(value, ("raise", "skip")) if isinstance(value, str) else ""
    raise ConfigError(f"must be 'raise', 'skip' or {{fallback: STAGE}}, got {word_of(value)}", near)


def _on_error_as_data(value: str | Fallback) -> Any:
    return {"fallback": value.stage.config()} if isinstance(value, Fallback) else value


if TYPE_CHECKING:  # what may be written; a stage has it as one of the first two
    OnError = Literal["raise", "skip"] | Fallback | Mapping[Literal["fallback"], "Stage"]
else:
    OnError = Annotated[
        Literal["raise", "skip"] | SkipValidation[Fallback],
        PlainValidator(_checked_on_error),
        PlainSerializer(_on_error_as_data),
        WithJsonSchema({"enum": ["raise", "skip"]}),  # a fallback is any stage, which the schema of a file knows
    ]


class Stage(BaseModel):
    """One step of a pipeline. Subclass it, set ``type``, and write ``process``.

    A pipeline opens and closes its stages. A stage that is used without one is a context manager, too: ``with`` and
    ``async with`` open and close it.

    Class attributes:
        type: the registered name, as YAML says it.
        needs: what the results must carry when they come in: of "query_text", "vector", "hits", "text" (of hits), and
            "score:NAME" for the score of an earlier stage.
        gives: what they carry afterwards in addition.
        instant: the work takes no time to speak of (no server, no model), so it is done even when the time given to
            the query is used up.
        dry_run_opens: ``dry_run`` needs what ``setup`` opens. Where it does not, a dry run leaves the stage closed.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # what stands where a key was meant may be the secret itself
        use_attribute_docstrings=True,  # a text below a field is its description, as in the plugin of the README
    )

    type: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    instant: ClassVar[bool] = False
    dry_run_opens: ClassVar[bool] = True

    name: Annotated[str, Field(description="Name in reports and scores; the type by default.")] = ""
    timeout: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Seconds this stage may take for a batch, at most.")
    ] = None
    on_error: Annotated[
        OnError,
        Field(
            description="What a failure does to the query: raise ends it, skip goes on without this stage, "
            "{fallback: STAGE} has another stage do it. The result says so."
        ),
    ] = "raise"

    _lock: Any = PrivateAttr(default_factory=threading.RLock)
    _users: int = PrivateAttr(default=0)
    _opening: Deadline = PrivateAttr(default=Deadline())

    if not TYPE_CHECKING:  # type checkers shall see the fields as keyword arguments, not **fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise ConfigError(problems=problems_of(error, type(self)), place=type(self).__name__) from error

    @model_validator(mode="before")
    @classmethod
    def _named_after_type(cls, data: Any) -> Any:
        return {**data, "name": data.get("name") or cls.type} if isinstance(data, dict) else data

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes `limit: true` for 1.
        if isinstance(value, bool) and not takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"must not be {str(value).lower()}")
        return value

    def __eq__(self, other: object) -> bool:
        """Equal when class and configuration are; whether they are open does not count."""
        return type(self) is type(other) and isinstance(other, Stage) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    @property
    def fallback(self) -> Stage | None:
        """The stage that stands in where this one fails."""
        return self.on_error.stage if isinstance(self.on_error, Fallback) else None

    def family(self) -> list[Stage]:
        """This stage, its fallback, the fallback's fallback, and so on."""
        return [self, *(self.fallback.family() if self.fallback else ())]

    def config(self) -> dict[str, Any]:
        """The configuration as plain data: ``type`` and every field that is not at its default."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        if data.get("name") == self.type:
            del data["name"]
        return {"type": self.type, **data}

    def requires(self) -> frozenset[str]:
        """What this instance needs; ``needs`` unless its fields say otherwise."""
        return self.needs

    def provides(self) -> frozenset[str]:
        """What this instance gives; ``gives`` unless its fields say otherwise."""
        return self.gives

    @classmethod
    def about(cls) -> dict[str, str]:
        """What ``milvus-pipeline stages`` says of the class beside its fields: ``{"address": "https://..."}``."""
        return {}

    # -- life ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Open what the stage works with. Heavy imports belong here. Runs once however many pipelines share it.

        Calls to a server have to be done by ``opening``; loading a model is work, and may take its time.
        """

    def teardown(self) -> None:
        """Let go of what ``setup`` opened."""

    @property
    def opening(self) -> Deadline:
        """When the servers that ``setup`` calls must have answered."""
        return self._opening

    def open(self, timeout: float | None = None) -> None:
        """Open the stage, or count one more user where it is open. Every ``open`` wants its ``close``.

        Args:
            timeout: seconds that servers have to answer; the stage's own ``timeout`` only shortens it.
        """
        with self._lock:
            if self._users == 0:
                self._opening = Deadline.after(timeout).sooner(self.timeout)
                self.setup()
            self._users += 1

    def close(self) -> None:
        """Give the stage back; the last user's ``close`` tears it down. Without effect on a closed stage."""
        with self._lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                self.teardown()

    def release(self) -> bool:
        """Give the stage back where others still use it, which takes no time; False where ``close`` is due."""
        with self._lock:
            if self._users > 1:
                self._users -= 1
                return True
            return self._users == 0

    async def aopen(self, timeout: float | None = None) -> None:
        """``open`` without blocking the event loop."""
        await asyncio.to_thread(self.open, timeout)

    async def aclose(self) -> None:
        """``close`` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self.aopen()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    @property
    def is_open(self) -> bool:
        """True between ``open`` and ``close``."""
        return self._users > 0

    def check(self, context: CheckContext) -> Iterable[Finding]:
        """What can be verified cheaply and without side effects, before a first query: see ``Pipeline.check``.

        Nothing is loaded, changed or paid for, and the stage may be closed. What can be compared with other stages
        (a dimension, say) is left in the context for those behind this one. Exceptions are reported
        as error findings. By default the class's ``doctor`` is asked, if there is one.
        """
        examine = doctor_of(type(self))
        return examine(self, context) if examine is not None else ()

    def identity(self) -> Mapping[str, Any]:
        """What the open stage works with, beyond its configuration: what two runs have to share to be comparable.

        The revision of a model, say, or schema and row count of a collection: plain data, short, without anything
        secret. Job manifests record it, and a job is resumed only where it is still the same.

        Raises:
            StageError: it could not be found out.
        """
        return {}

    # -- work ---------------------------------------------------------------------------------------------------

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Do the stage's work on a batch.

        Args:
            results: the results so far, one a query; never empty, none failed.
            context: deadline in; warnings, details and failures of single queries out.

        Returns:
            As many results in the same order.

        Raises:
            Exception: the whole batch failed. For one bad query, call ``context.fail`` and return its result as is.
        """
        raise NotImplementedError(f"{type(self).__name__} must define process()")

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop; runs it in a thread unless a stage knows better."""
        return await asyncio.to_thread(self.process, results, context)

    def dry_run(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """What a dry run does in place of ``process``; ``process`` itself unless a stage knows better.

        Retrieval runs truly, since what it finds is what would be sent. A stage that sends to a service that is paid
        for, or works on what such a stage gives, overrides this. Arguments and outcome are those of ``process``.
        """
        return self.process(results, context)
