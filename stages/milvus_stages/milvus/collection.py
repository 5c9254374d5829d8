"""What a collection is, and whether a search fits it.

The engines silently accept much that makes answers wrong, so it is checked here: Milvus Lite takes a wrong metric and
returns wrong scores, and drops unknown output fields; older servers ignore ``group_by_field``; neither refuses NaN.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from milvus_pipeline import QueryError, StageError
from milvus_pipeline.plugin import Deadline, suggestion
from milvus_stages.milvus.client.server import Connection
from milvus_stages.milvus.params import DEFAULT_NPROBE, MAX_NPROBE, check_params
from milvus_stages.milvus.settings import SearchSettings

VECTOR_TYPE: Final = "FLOAT_VECTOR"
"""The type of the fields that a search can use."""

_TEXT_TYPES: Final = frozenset({"VARCHAR", "STRING", "TEXT"})
_GROUPING_SINCE: Final = (2, 4)
# What `describe_index` returns beside the parameters that the index was built with.
_INDEX_STATE: Final = frozenset(
    {
        *("params", "field_name", "index_name", "index_type", "metric_type", "state"),
        *("total_rows", "indexed_rows", "pending_index_rows"),
    }
)


@dataclass(frozen=True)
class CollectionInfo:
    """A collection as its server describes it.

    Args:
        name: as the stage gives it.
        real_name: of the collection itself, if ``name`` is an alias.
        primary: name of the primary key field.
        fields: data type by field name, such as ``{"text": "VARCHAR"}``.
        dims: dimension by name of the vector fields that a search can use.
        dynamic: whether rows may have fields that are not in the schema.
        partitions: their names.
        rows: number of rows, as far as the server has counted them.
        marker: the connection's mark of this state of the collection; see ``Connection.marker``.
    """

    name: str
    real_name: str
    primary: str
    fields: Mapping[str, str]
    dims: Mapping[str, int]
    dynamic: bool
    partitions: Sequence[str]
    rows: int
    marker: object = None

    @property
    def plain_fields(self) -> list[str]:
        """The fields that are not vectors."""
        return [name for name, dtype in self.fields.items() if "VECTOR" not in dtype]


@dataclass(frozen=True)
class IndexInfo:
    """The index of a vector field.

    Args:
        index_type: such as "IVF_FLAT".
        metric_type: such as "IP".
        params: that it was built with.
        pending: rows that are not in the index yet.
    """

    index_type: str
    metric_type: str
    params: Mapping[str, Any]
    pending: int

    @property
    def nlist(self) -> int | None:
        """Number of lists; None if the index has none."""
        return self.params.get("nlist")


@dataclass(frozen=True)
class CollectionState:
    """A collection that fits a search, as it was when it was inspected.

    Args:
        settings: of the search.
        info: the collection.
        index: of ``anns_field``.
        anns_field: the field that is searched.
        fields: the fields that go into ``hit.fields``.
        requested_fields: the fields that Milvus is asked for.
        seen: when the inspection began (``time.monotonic`` seconds).
        loads: how often the collection was found not loaded since the stage was opened.
        calm: whether the inspection found the collection unchanged and loaded.
    """

    settings: SearchSettings
    info: CollectionInfo
    index: IndexInfo
    anns_field: str
    fields: Sequence[str]
    requested_fields: Sequence[str]
    seen: float
    loads: int = 0
    calm: bool = False

    @property
    def dim(self) -> int:
        """Dimension of the field that is searched."""
        return self.info.dims[self.anns_field]

    def is_like(self, other: CollectionState) -> bool:
        """Whether the answers of one can be read as answers of the other. Both fit the search."""
        both = (self, other)
        one, two = ((s.dim, s.anns_field, s.info.primary, s.info.fields, s.requested_fields, s.loads) for s in both)
        return one == two

    def search_params(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the stage's parameters, overridden by a query's own.

        Raises:
            QueryError: they do not go together.
        """
        params = {**self.settings.params, **own}
        if own:
            check_params(params, self.settings.index_type, self.settings.metric_type)
        if self.index.index_type.startswith("IVF"):
            params.setdefault("nprobe", DEFAULT_NPROBE)
            # Milvus refuses to probe more lists than there are; the answer is the same.
            params["nprobe"] = min(params["nprobe"], self.index.nlist or MAX_NPROBE)
        return params

    def shortfall(self, returned: int, params: Mapping[str, Any], filtered: bool) -> tuple[str, str] | None:
        """Return what is missing and the next step, if lists that were not probed may hold more of the limit's hits."""
        settings, rows, nprobe = self.settings, self.info.rows, params.get("nprobe")
        narrowed = filtered or "radius" in params or settings.partition_names or settings.group_by_field
        everything = not narrowed and returned + settings.offset >= rows
        # There are no more lists than rows; a server may report 0 rows until it has flushed them.
        lists = min((bound for bound in (self.index.nlist, rows) if bound), default=None)
        if returned >= settings.limit or everything or nprobe is None or (lists and nprobe >= lists):
            return None
        probed = f"{nprobe} of the index's {f'{lists} ' if lists else ''}lists"
        return f"only {returned} of {settings.limit} hits were found in {probed}", "raise params.nprobe to search more"


class Problem(NamedTuple):
    """One thing about a collection that does not fit a search.

    Args:
        field: of the stage that it concerns, or "index".
        what: what does not fit.
        next_step: what the reader can do about it.
    """

    field: str
    what: str
    next_step: str


class UnfitError(StageError):
    """The collection does not fit the search.

    Args:
        problems: at least one.
        place: the collection, for the message.
        changed: it did fit when the stage was opened.

    Attributes:
        problems: as above.
    """

    def __init__(self, problems: Sequence[Problem], *, place: str, changed: bool = False) -> None:
        lead = "the collection has changed since the stage was opened: " if changed else ""
        if len(problems) == 1:
            (problem,) = problems
            what, next_step = f"{lead}{problem.field}: {problem.what}", problem.next_step
        else:
            lines = "".join(f"\n  {field}: {what}; {step}" for field, what, step in problems)
            what, next_step = f"{lead}it does not fit the stage:{lines}", ""
        super().__init__(what, next_step, place=place, reason_code="schema_changed" if changed else "config")
        self.problems = tuple(problems)


def describe(connection: Connection, collection: str, deadline: Deadline) -> CollectionInfo:
    """Ask the server about a collection.

    Raises:
        StageError: it does not exist; the message suggests a similar name.
    """
    if not connection.call(deadline, "has_collection", collection):
        near = suggestion(collection, connection.call(deadline, "list_collections"))
        step = f"{near}{'; ' if near else ''}make it with `milvus-pipeline ingest`, or correct the name"
        raise StageError(f"there is no collection {collection!r}", step, reason_code="not_found")
    real_name = connection.call(deadline, "describe_collection", collection)["collection_name"]
    marker = connection.marker(real_name)
    schema = connection.call(deadline, "describe_collection", collection)
    fields = {field["name"]: type_name(field) for field in schema["fields"]}
    return CollectionInfo(
        name=collection,
        real_name=real_name,
        primary=next(field["name"] for field in schema["fields"] if field.get("is_primary")),
        fields=fields,
        dims={f["name"]: int(f["params"]["dim"]) for f in schema["fields"] if fields[f["name"]] == VECTOR_TYPE},
        dynamic=bool(schema.get("enable_dynamic_field")),
        partitions=connection.call(deadline, "list_partitions", collection),
        rows=int(connection.call(deadline, "get_collection_stats", collection).get("row_count", 0)),
        marker=marker,
    )


def type_name(field: Mapping[str, Any]) -> str:
    """Return the data type of a field of a schema, such as "VARCHAR"."""
    return str(getattr(field["type"], "name", field["type"]))


def describe_index(connection: Connection, collection: str, field: str, deadline: Deadline) -> IndexInfo | None:
    """Ask the server about the index of a field; None if there is none."""
    # Milvus Lite describes the index it has whatever field it is asked for, so compare the field in the answer.
    for name in connection.call(deadline, "list_indexes", collection):
        data = connection.call(deadline, "describe_index", collection, name)
        if data and data.get("field_name") == field:
            # Depending on how the index was made, its parameters are flat or one level down.
            flat = {**data, **(data.get("params") or {})}
            params = {key: _plain(value) for key, value in sorted(flat.items()) if key not in _INDEX_STATE}
            pending = int(data.get("pending_index_rows") or 0)
            return IndexInfo(str(flat["index_type"]), str(flat["metric_type"]), params, pending)
    return None


def _plain(value: Any) -> Any:
    """Numbers that an engine returns as strings become numbers; anything that is not plain data becomes a string."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int | float | bool | str) else str(value)


def inspect_collection(settings: SearchSettings, connection: Connection, deadline: Deadline) -> CollectionState:
    """Look at the collection, and check that it fits the search.

    Raises:
        StageError: the collection does not exist.
        UnfitError: it does not fit.
    """
    seen = time.monotonic()
    try:
        info = describe(connection, settings.collection, deadline)
    except StageError as error:
        raise error.at(settings.uri) from None
    field = find_vector_field(info, settings)
    index = describe_index(connection, settings.collection, field, deadline)
    version = connection.call(deadline, "get_server_version")
    problems = [*_index_problems(settings, index, field), *_field_problems(settings, info, version)]
    if problems or index is None:
        raise UnfitError(problems, place=settings.where)
    text, names = settings.text_field, settings.output_fields
    if names is None:
        names = [name for name in info.plain_fields if name != info.primary]
    fields = [name for name in dict.fromkeys(names) if name != text]
    requested = [*([] if text is None else [text]), *fields] or [info.primary]
    return CollectionState(settings, info, index, field, fields, requested, seen)


def find_vector_field(info: CollectionInfo, settings: SearchSettings) -> str:
    """Return the field to search: the configured one, or the only one there is.

    Raises:
        UnfitError: it does not exist, is not a vector of floats, or is one of several.
    """
    name = settings.anns_field
    if name is None:
        if len(info.dims) == 1:
            return next(iter(info.dims))
        problem = Problem("anns_field", "name the field to search", suggestion("", info.dims))
    elif name in info.dims:
        return name
    elif name in info.fields:
        what = f"{name!r} is {info.fields[name]}, but the search needs a {VECTOR_TYPE}"
        problem = Problem("anns_field", what, suggestion("", info.dims))
    else:
        problem = _unknown_field("anns_field", name, info.dims)
    raise UnfitError([problem], place=settings.where)


def lost_fields(before: CollectionState, now: CollectionState) -> list[Problem]:
    """Return the configured fields that have left the schema; a dynamic schema would hide that."""
    settings = now.settings
    names = [("text_field", settings.text_field), *(("output_fields", name) for name in settings.output_fields or ())]
    return [
        _unknown_field(key, name, now.info.plain_fields)
        for key, name in names
        if name is not None and name in before.info.fields and name not in now.info.fields
    ]


def check_vector(vector: Any) -> npt.NDArray[np.float32]:
    """Return a query's vector as ``(dim,)`` float32, of any dimension.

    Raises:
        QueryError: it is missing, not a flat list of numbers, or not finite.
    """
    if vector is None:
        raise QueryError("the query has no vector", "put an encode stage before this one, or pass Query(vector=...)")
    try:
        array = np.asarray(vector)
    except ValueError:  # lists of different lengths
        array = np.empty(0, dtype=object)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise QueryError("the query's vector must be a flat list of numbers, such as [0.1, 0.2]")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise QueryError(
            "the query's vector contains NaN, infinity, or a number too large for float32", "check its encoder"
        )
    return array


def _index_problems(settings: SearchSettings, index: IndexInfo | None, field: str) -> Iterator[Problem]:
    if index is None:
        step = "make one, or make the collection with `milvus-pipeline ingest`"
        yield Problem("index", f"the field {field!r} has no index", step)
        return
    if index.metric_type.upper() != settings.metric_type:
        yield Problem(
            "metric_type",
            f"the index was built with {index.metric_type}, not {settings.metric_type}",
            f"set `metric_type: {index.metric_type}`, or rebuild the collection",
        )
    if settings.index_type not in (index.index_type, "AUTOINDEX"):
        # An error and not a warning: the parameters of one index (nprobe) mean nothing to another (ef).
        yield Problem(
            "index_type",
            f"the field {field!r} has the index {index.index_type}, not {settings.index_type}",
            f"set `index_type: {index.index_type}`, or rebuild the collection",
        )


def _field_problems(settings: SearchSettings, info: CollectionInfo, version: str) -> Iterator[Problem]:
    for name in settings.output_fields or ():
        if name not in info.fields and not info.dynamic:
            yield _unknown_field("output_fields", name, info.plain_fields)
    text = settings.text_field
    if text is not None and text not in info.fields and not info.dynamic:
        problem = _unknown_field("text_field", text, info.plain_fields)
        yield problem._replace(next_step=f"{problem.next_step}; set `text_field: null` for hits without text")
    elif text is not None and info.fields.get(text, "VARCHAR") not in _TEXT_TYPES:
        yield Problem("text_field", f"{text!r} is {info.fields[text]}, not text", "name a VARCHAR field, or null")
    group = settings.group_by_field
    if group is not None and group not in info.plain_fields:
        yield _unknown_field("group_by_field", group, info.plain_fields)
    elif group is not None and not _can_group(version):
        yield Problem("group_by_field", f"the server is {version}, which ignores it", "it needs Milvus 2.4 or later")
    for name in settings.partition_names or ():
        if name not in info.partitions:
            step = suggestion(name, info.partitions)
            yield Problem("partition_names", f"there is no partition {name!r}", step)


def _can_group(version: str) -> bool:
    """Whether the server groups hits, by its version: ``milvus_lite-3.2.2``, ``v2.3.5-lite`` (a server), ``2.6.0``."""
    if version.startswith("milvus_lite"):
        return True
    numbers = [int(part) if part.isdigit() else 0 for part in version.lstrip("v").split("-")[0].split(".")]
    return tuple(numbers[:2]) >= _GROUPING_SINCE


def _unknown_field(key: str, name: str, known: Iterable[str]) -> Problem:
    return Problem(key, f"the collection has no field {name!r}", suggestion(name, known))
