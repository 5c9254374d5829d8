"""Opening a search: connect, and check that the collection fits the stage."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from milvus_pipeline import CircuitOpenError, PipelineError, QueryError, StageError
from milvus_pipeline.plugin import Deadline, retrying
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.lite import check_present
from milvus_stages.milvus.client.pool import shared
from milvus_stages.milvus.client.server import CALL_SECONDS, CONNECT_SECONDS, MIN_SECONDS, Connection, is_lite
from milvus_stages.milvus.collection import (
    CollectionInfo,
    IndexInfo,
    described,
    grouping_problem,
    index_of,
    unknown_field,
    vector_field,
)
from milvus_stages.milvus.params import DEFAULT_NPROBE, MAX_NPROBE, problem

if TYPE_CHECKING:
    from milvus_stages.milvus.search import MilvusSearch

LOAD_SECONDS = 120.0
"""Loading a collection may take this long. It goes on when nobody waits for it any more."""

_FRESH_SECONDS = 1.0  # that a look at the collection is the last word for

_TEXT_TYPES = frozenset({"VARCHAR", "STRING", "TEXT"})


@dataclass(frozen=True)
class Opened:
    """A search that is ready: its connection, and what it knows of the collection.

    Args:
        connection: shared with others.
        info: the collection.
        index: over ``anns_field``.
        anns_field: the field that is searched.
        dim: its dimension.
        fields: the fields that go into ``hit.fields``.
        requested_fields: what is asked of Milvus.
        stage: the configuration.
        first_dim: the dimension when the stage was opened.
        loads: how often it was found not loaded since then.
        seen: when the look at the collection began that this is from (``time.monotonic`` seconds).
        calm: whether that look found it as it was thought to be, and loaded.
    """

    connection: Connection
    info: CollectionInfo
    index: IndexInfo
    anns_field: str
    dim: int
    fields: Sequence[str]
    requested_fields: Sequence[str]
    stage: MilvusSearch
    first_dim: int
    loads: int = 0
    seen: float = 0.0
    calm: bool = False

    def renewed(self) -> Opened:
        """The same, as the collection is now.

        Raises:
            StageError: it is gone, or does not fit the stage any more.
        """
        deadline = Deadline.after(CALL_SECONDS)
        try:
            now = checked(self.stage, self.connection, deadline)
            self._check_lost(now)
        except StageError as error:
            if error.reason_code != "config":
                raise
            raise StageError(
                f"{error}\n{self.stage.where} is not what it was when the stage was opened",
                "after the change, open the pipeline anew",
                reason_code="schema_changed",
            ) from error
        return replace(now, first_dim=self.first_dim, loads=self.loads)

    def _check_lost(self, now: Opened) -> None:
        """Raise where fields that were asked for by name are no more; for a dynamic schema, they may be in the rows."""
        for key, names in (("text_field", [self.stage.text_field]), ("output_fields", self.stage.output_fields or ())):
            for name in names:
                if name in self.info.fields and name not in now.info.fields:
                    found = unknown_field(now.info, str(name))
                    raise StageError(f"{key}: {found}", place=self.stage.where, reason_code="config")

    def like(self, other: Opened) -> bool:
        """Whether an answer of the one can be taken for one of the other. Both fit the stage."""
        return _read_by(self) == _read_by(other)

    @property
    def fresh(self) -> bool:
        """Whether the collection was looked at a moment ago, and is not known to have changed since."""
        recent = time.monotonic() - self.seen < _FRESH_SECONDS
        return recent and self.connection.marker(self.info.real_name) == self.info.marker

    def doubtful(self, answers: Sequence[Any]) -> bool:
        """Whether answers may come from another collection of this name, which the engines do not tell."""
        if self.connection.marker(self.info.real_name) != self.info.marker:
            return True
        hit = next((answer[0] for answer in answers if len(answer)), None)
        return hit is not None and any(
            name in self.info.fields and name != self.info.primary and name not in hit["entity"]
            for name in self.requested_fields
        )

    def whole(self, answers: Sequence[Any]) -> bool:
        """Whether answers are what a loaded collection gives. While one is released, a server finds nothing in it."""
        return self.connection.is_lite or all(len(answer) for answer in answers)

    def misfit(self, dim: int) -> PipelineError:
        """That queries of this dimension do not fit the collection."""
        if self.dim == self.first_dim:
            return QueryError(
                (
                    f"the query's vector has {dim} numbers, but the field {self.anns_field!r} holds "
                    f"vectors of {self.dim}"
                ),
                "encode the query with the model that the collection was made with",
            )
        return StageError(
            (
                f"{self.stage.where} has changed: its field {self.anns_field!r} held vectors of "
                f"{self.first_dim} numbers when the stage was opened and holds vectors of {self.dim} "
                f"now, but the query's vector has {dim}"
            ),
            "encode queries with the model that it is made with now, or make it anew with theirs",
            reason_code="schema_changed",
        )

    def retryable(self, error: BaseException, given: Deadline) -> bool:
        """Whether a search that failed so may be made again. In Milvus Lite only loading is a passing state.

        That a server is left alone for a while is waited for only where nobody said when he wants an answer.
        """
        if isinstance(error, CircuitOpenError):
            return given.at is None
        return failures.is_not_loaded(error) if self.connection.is_lite else failures.is_transient(error)

    def search_deadline(self, given: Deadline) -> Deadline:
        """When a search and its repetitions must be done: as given, or else soon, so that no server is waited for long.

        A search of Milvus Lite is work of this process and no waiting, so it is not bounded here.
        """
        return given if given.at is not None or self.connection.is_lite else Deadline.after(CALL_SECONDS)

    def search_params(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The stage's parameters, overridden by a query's own.

        Raises:
            QueryError: they are wrong together.
        """
        params = {**self.stage.params, **own}
        if own and (found := problem(params, self.stage.index_type, self.stage.metric_type)):
            raise QueryError(found)
        if self.index.index_type.startswith("IVF"):
            params.setdefault("nprobe", DEFAULT_NPROBE)
            # More lists than there are cannot be searched: the answer is the same.
            params["nprobe"] = min(params["nprobe"], self.index.nlist or MAX_NPROBE)
        return params

    def shortfall(self, returned: int, params: Mapping[str, Any], filtered: bool) -> str | None:
        """A warning where fewer hits than asked for came back although lists that were left out may hold more."""
        stage, rows, nprobe = self.stage, self.info.rows, params.get("nprobe")
        narrowed = filtered or "radius" in params or stage.partition_names or stage.group_by_field
        everything = not narrowed and returned + stage.offset >= rows
        # There are no more lists than rows; a server may count no rows until it has written them out.
        lists = min((bound for bound in (self.index.nlist, rows) if bound), default=None)
        if returned >= stage.limit or everything or nprobe is None or (lists and nprobe >= lists):
            return None
        found = f"{returned} of {stage.limit} hits came back, from {nprobe} of the index's "
        return f"{found}{f'{lists} ' if lists else ''}lists; raise params.nprobe to look further"


def connected(stage: MilvusSearch, deadline: Deadline) -> Connection:
    """Connect as the stage says, within the deadline and ``CONNECT_SECONDS``.

    Raises:
        StageError: the server cannot be reached, or refuses.
    """
    deadline = deadline.sooner(CONNECT_SECONDS)

    def attempt() -> Connection:
        seconds = max(MIN_SECONDS, deadline.remaining() or 0.0)
        return shared.acquire(stage.uri, stage.token(), stage.db_name, seconds, stage.tls)

    try:
        return retrying(stage.retry, deadline, failures.is_transient_at_connect)(attempt)
    except PipelineError:
        raise
    except Exception as error:
        explained = failures.explained(error, stage.uri, stage.token_env)
        raise explained from explained.__cause__


def opened(stage: MilvusSearch) -> Opened:
    """Connect and check.

    Raises:
        StageError: see ``MilvusSearch.setup``.
    """
    if is_lite(stage.uri):
        check_present(stage.uri)
    # Opening a file is work of this process; only a server can keep one waiting.
    given = Deadline() if is_lite(stage.uri) else stage.opening
    limit = given.sooner(CONNECT_SECONDS)

    def attempt() -> Opened:
        seconds = max(MIN_SECONDS, limit.remaining() or 0.0)
        with stage.guarding(seconds):
            connection = shared.acquire(stage.uri, stage.token(), stage.db_name, seconds, stage.tls)
            try:
                return checked(stage, connection, given if connection.is_lite else given.sooner(CALL_SECONDS))
            except BaseException:
                shared.release(connection)
                raise

    try:
        return retrying(stage.retry, limit, failures.is_transient)(attempt)
    except PipelineError:
        raise
    except Exception as error:
        explained = failures.explained(error, stage.where, stage.token_env)
        raise explained from explained.__cause__


def checked(stage: MilvusSearch, connection: Connection, deadline: Deadline) -> Opened:
    """The collection that the connection leads to.

    Raises:
        StageError: there is none, or it does not fit the stage; the message holds every problem found.
    """
    seen = time.monotonic()
    try:
        info = described(connection, stage.collection, deadline)
        anns_field = vector_field(info, stage.anns_field)
    except StageError as error:
        raise StageError(str(error), place=str(stage.uri), reason_code=error.reason_code) from error
    version = connection.call(deadline, "get_server_version")
    index = index_of(connection, stage.collection, anns_field, deadline)
    if problems := [*_index_problems(stage, index, anns_field), *_field_problems(stage, info, version)]:
        raise StageError("\n".join(f"{stage.where}: {found}" for found in problems), reason_code="config")
    assert index is not None  # noqa: S101 - a missing index is among the problems above
    wanted = info.plain_fields if stage.output_fields is None else stage.output_fields
    fields = [name for name in dict.fromkeys(wanted) if name != stage.text_field]
    if stage.output_fields is None:
        fields = [name for name in fields if name != info.primary]
    requested = [name for name in (stage.text_field, *fields) if name is not None] or [info.primary]
    dim = info.dims[anns_field]
    return Opened(connection, info, index, anns_field, dim, fields, requested, stage, first_dim=dim, seen=seen)


def _read_by(state: Opened) -> tuple[Any, ...]:
    """What the answers of a collection are read by."""
    return state.dim, state.anns_field, state.info.primary, state.info.fields, state.requested_fields, state.loads


def _index_problems(stage: MilvusSearch, index: IndexInfo | None, field: str) -> list[str]:
    if index is None:
        return [f"the field {field!r} has no index; make one, or make the collection with `milvus-pipeline ingest`"]
    problems = []
    if index.metric_type.upper() != stage.metric_type:
        problems.append(
            f"metric_type: the index was built with {index.metric_type}, not {stage.metric_type}; set "
            f"`metric_type: {index.metric_type}`, or make the collection anew"
        )
    if stage.index_type not in (index.index_type, "AUTOINDEX"):
        # An error and no warning: the parameters of one index (nprobe) mean nothing to another (ef).
        problems.append(
            f"index_type: the field {field!r} has the index {index.index_type}, not {stage.index_type}; set "
            f"`index_type: {index.index_type}`, or make the collection anew"
        )
    return problems


def _field_problems(stage: MilvusSearch, info: CollectionInfo, version: str) -> list[str]:
    problems = [
        f"output_fields: {unknown_field(info, name)}"
        for name in stage.output_fields or ()
        if name not in info.fields and not info.dynamic
    ]
    text = stage.text_field
    if text is not None and text not in info.fields and not info.dynamic:
        problems.append(f"text_field: {unknown_field(info, text)}; `text_field: null` takes hits without text")
    elif text is not None and info.fields.get(text, "VARCHAR") not in _TEXT_TYPES:
        problems.append(f"text_field: {text!r} is {info.fields[text]}, not text; name a VARCHAR field, or null")
    group = stage.group_by_field
    if group is not None and group not in info.plain_fields:
        problems.append(f"group_by_field: {unknown_field(info, group)}")
    elif group is not None and (found := grouping_problem(version)):
        problems.append(found)
    problems.extend(
        f"partition_names: there is no partition {name!r}; there are {', '.join(info.partitions)}"
        for name in stage.partition_names or ()
        if name not in info.partitions
    )
    return problems
