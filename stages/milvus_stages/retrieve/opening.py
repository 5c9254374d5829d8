"""Opening a search: connect, check that the collection fits the stage, load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milvus_pipeline import Deadline, PipelineError, QueryError, StageError, retrying
from milvus_stages.retrieve import failures
from milvus_stages.retrieve.checks import (
    CollectionInfo,
    IndexInfo,
    described,
    grouping_problem,
    index_of,
    unknown_field,
    vector_field,
)
from milvus_stages.retrieve.connection import CALL_SECONDS, CONNECT_SECONDS, MIN_SECONDS, Connection, is_lite
from milvus_stages.retrieve.lite import check_present
from milvus_stages.retrieve.params import DEFAULT_NPROBE, MAX_NPROBE, problem
from milvus_stages.retrieve.sharing import shared

if TYPE_CHECKING:
    from milvus_stages.retrieve.milvus import MilvusSearch

LOAD_SECONDS = 120.0
"""Loading a collection may take this long. It is work and no hang, so a stage's ``timeout`` does not bound it."""

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
    """

    connection: Connection
    info: CollectionInfo
    index: IndexInfo
    anns_field: str
    dim: int
    fields: Sequence[str]
    requested_fields: Sequence[str]
    stage: MilvusSearch

    def retryable(self, error: BaseException) -> bool:
        """Whether a search that failed so may be made again. In Milvus Lite only loading is a passing state."""
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
        raise failures.explained(error, stage.uri, stage.token_env) from error


def opened(stage: MilvusSearch) -> Opened:
    """Connect, check and load.

    Raises:
        StageError: see ``MilvusSearch.setup``.
    """
    if is_lite(stage.uri):
        check_present(stage.uri)
    # Opening a file is work of this process; only a server can keep one waiting.
    deadline = Deadline() if is_lite(stage.uri) else stage.opening
    connection = connected(stage, deadline)
    try:
        state = checked(stage, connection, deadline)
        ensure_loaded(stage, connection, deadline, LOAD_SECONDS)
    except Exception as error:
        shared.release(connection)
        if isinstance(error, PipelineError):
            raise
        raise failures.explained(error, stage.where, stage.token_env) from error
    return state


def checked(stage: MilvusSearch, connection: Connection, deadline: Deadline) -> Opened:
    try:
        info = described(connection, stage.collection, deadline)
        anns_field = vector_field(info, stage.anns_field)
    except StageError as error:
        raise StageError(f"{stage.uri}: {error}") from error
    version = connection.call(deadline, "get_server_version")
    index = index_of(connection, stage.collection, anns_field, deadline)
    if problems := [*_index_problems(stage, index, anns_field), *_field_problems(stage, info, version)]:
        raise StageError("\n".join(f"{stage.where}: {found}" for found in problems))
    assert index is not None  # noqa: S101 - a missing index is among the problems above
    wanted = info.plain_fields if stage.output_fields is None else stage.output_fields
    fields = [name for name in dict.fromkeys(wanted) if name != stage.text_field]
    if stage.output_fields is None:
        fields = [name for name in fields if name != info.primary]
    requested = [name for name in (stage.text_field, *fields) if name is not None] or [info.primary]
    return Opened(connection, info, index, anns_field, info.dims[anns_field], fields, requested, stage)


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


def ensure_loaded(stage: MilvusSearch, connection: Connection, deadline: Deadline, seconds: float | None) -> None:
    """Load the collection, or wait until it is loaded.

    Args:
        stage: the configuration.
        connection: to its server.
        deadline: for asking whether it is loaded.
        seconds: that loading may take.

    Raises:
        StageError: it is not loaded, and the stage may not load it.
    """
    state = connection.call(deadline, "get_load_state", stage.collection)["state"].name
    if state == "Loaded":
        return
    if state != "Loading" and not stage.load:
        raise StageError(
            f"{stage.where} is not loaded, and the stage may not load it (`load: false`); load it, or set `load: true`"
        )
    # For a collection that is being loaded already, this waits until it is.
    connection.client.load_collection(stage.collection, timeout=seconds)
