"""The contract of a stage: what an author of a plugin reads first.

A stage *is* its configuration: a frozen pydantic model, validated the same from Python and from YAML. What it opens
(clients, models) is private state, made in ``setup`` and released in ``teardown``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
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
    """A replacement for a stage that failed: ``on_error=Fallback(BGE())``; in YAML ``on_error: {fallback: {...}}``.

    The fallback gets only the queries that failed, with the hits they had before, and what is left of their time; so
    give the stage before it a ``timeout``. The fallback's own ``on_error`` says what its own failure does: a chain of
    fallbacks ends in "raise" or "skip". It opens with the pipeline.

    Args:
        stage: the replacement.
    """

    stage: Stage


def _checked_on_error(value: Any) -> str | Fallback:
    if isinstance(value, Mapping) and set(value) == {"fallback"}:
        value = Fallback(value["fallback"])
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


if TYPE_CHECKING:  # what a caller may write; a mapping becomes a Fallback
    OnError = Literal["raise", "skip"] | Fallback | Mapping[Literal["fallback"], "Stage"]
else:
    OnError = Annotated[
        Literal["raise", "skip"] | SkipValidation[Fallback],
        PlainValidator(_checked_on_error),
        PlainSerializer(_on_error_as_data),
        WithJsonSchema({"enum": ["raise", "skip"]}),  # a fallback is any stage, which the schema of a file knows
    ]


class Stage(BaseModel):
    """One step of a pipeline.

    Subclass it, register it under a type, and write ``process``::

        @register("year_filter")
        class YearFilter(Stage):
            needs = frozenset({"hits"})
            instant = True

            since: int = Field(ge=1900, description="The oldest year that is kept.")

            def process(self, results, context):
                return [result.with_hits([hit for hit in result if hit.fields["year"] >= self.since])
                        for result in results]

    Its fields are its arguments and its keys in YAML: ``{type: year_filter, since: 2020}``. A pipeline opens and closes
    its stages. Without a pipeline, ``with`` and ``async with`` do.

    A stage is pickled and copied deeply by its configuration: the copy is closed.

    Class attributes:
        type: the registered name, as in YAML.
        needs: what the incoming results must have: of "query_text", "vector", "hits", "text" (of hits), and
            "score:NAME" for the score of an earlier stage.
        gives: what they have afterwards in addition.
        instant: the work takes no time to speak of (no server, no model), so it is done even after the deadline.
        dry_run_opens: ``dry_run`` needs what ``setup`` opens. Otherwise a dry run leaves the stage closed.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # a value in the wrong place may be a secret
        use_attribute_docstrings=True,  # a docstring below a field is its description
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

    if not TYPE_CHECKING:  # type checkers must see the fields as keyword arguments, not **fields

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
            raise ConfigError(f"must not be {str(value).lower()}")
        return value

    def __eq__(self, other: object) -> bool:
        """Stages are equal if class and configuration are; whether they are open does not count."""
        return type(self) is type(other) and isinstance(other, Stage) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), {name: getattr(self, name) for name in self.model_fields_set})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        restored, arguments = self.__reduce__()
        copy: Self = restored(*deepcopy(arguments, memo))
        return copy

    @property
    def fallback(self) -> Stage | None:
        """The stage that replaces this one if it fails."""
        return self.on_error.stage if isinstance(self.on_error, Fallback) else None

    def family(self) -> list[Stage]:
        """Return this stage, its fallback, the fallback's fallback, and so on."""
        return [self, *(self.fallback.family() if self.fallback else ())]

    def config(self) -> dict[str, Any]:
        """Return the configuration as plain data: ``type``, and every field that differs from its default."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        if data.get("name") == self.type:
            del data["name"]
        return {"type": self.type, **data}

    def requires(self) -> frozenset[str]:
        """Return what this instance needs; ``needs`` unless its fields change it."""
        return self.needs

    def provides(self) -> frozenset[str]:
        """Return what this instance gives; ``gives`` unless its fields change it."""
        return self.gives

    @classmethod
    def about(cls) -> dict[str, str]:
        """Return what ``milvus-pipeline stages`` shows of the class beside its fields: ``{"address": "https://..."}``."""
        return {}

    # -- opening and closing ------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Open what the stage works with. Heavy imports belong here. Runs once even if several pipelines share it.

        Calls of a server must end by ``opening``; loading a model may take longer.
        """

    def teardown(self) -> None:
        """Release what ``setup`` opened."""

    @property
    def opening(self) -> Deadline:
        """The deadline for calls of servers in ``setup``."""
        return self._opening

    def open(self, timeout: float | None = None) -> None:
        """Open the stage, or count one more user if it is open. Each ``open`` needs its ``close``.

        Args:
            timeout: seconds that servers have to answer; the stage's own ``timeout`` only shortens it.
        """
        with self._lock:
            if self._users == 0:
                self._opening = Deadline.after(timeout).sooner(self.timeout)
                self.setup()
            self._users += 1

    def close(self) -> None:
        """Give the stage back; the last user's ``close`` calls ``teardown``. Does nothing if the stage is closed."""
        with self._lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                self.teardown()

    def release(self) -> bool:
        """Give the stage back if others still use it, which takes no time; else return False: ``close`` it."""
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
        """Verify what can be verified before a first query, cheaply and without side effects: see ``Pipeline.check``.

        Nothing is loaded, changed or paid for, and the stage may be closed. Facts that later stages can be compared
        with (such as a dimension) are put into the context. Exceptions are reported as error findings. By default the
        class's ``doctor`` does it, if there is one.
        """
        examine = doctor_of(type(self))
        return examine(self, context) if examine is not None else ()

    def identity(self) -> Mapping[str, Any]:
        """Return what the open stage works with, beyond its configuration.

        For example the revision of a model, or schema and row count of a collection: plain data, short, without
        secrets. Two runs that differ in it cannot be compared: job manifests record it, and a job is resumed only if it
        is still the same.

        Raises:
            StageError: it could not be determined.
        """
        return {}

    # -- work ---------------------------------------------------------------------------------------------------

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Do the stage's work on a batch.

        Args:
            results: the results so far, one for each query; never empty, none failed.
            context: brings the deadline; takes warnings, details, and failures of single queries.

        Returns:
            One result for each query, in the same order.

        Raises:
            Exception: the whole batch failed. For one bad query, call ``context.fail`` and return its result as is.
        """
        raise NotImplementedError(f"{type(self).__name__} must define process()")

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop; by default it runs in a thread."""
        return await asyncio.to_thread(self.process, results, context)

    def dry_run(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Do what a dry run does instead of ``process``; by default ``process`` itself.

        Retrieval runs as usual, since the texts it finds are those that would be sent. A stage that sends to a paid
        service, or that works on what such a stage gives, overrides this. Arguments and result are those of
        ``process``.
        """
        return self.process(results, context)


def _restored(cls: type[Stage], fields: dict[str, Any]) -> Stage:
    return cls(**fields)
