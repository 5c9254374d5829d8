"""What ``milvus-pipeline doctor`` checks about a search: server, collection, index, rows, texts, recall.

Nothing is changed. A server's collection that is not in memory is not loaded, so its rows are not checked. Milvus Lite
keeps a collection in memory for this process alone: if nothing else in it uses the database, the collection is loaded
for the duration of the check.

Each check is a function that takes an ``Examination`` and yields findings. To add one, write it and list it in
``CHECKS``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from milvus_pipeline import DeadlineError, QueryError, RetrySettings, StageError
from milvus_pipeline.plugin import CheckContext, Deadline, Finding, doctor, share_text, suggestion
from milvus_stages.doctors.recall import QUERIES, recall_findings
from milvus_stages.doctors.sample import RowReader, Sample
from milvus_stages.milvus import failures, filters
from milvus_stages.milvus.client.lite import check_present
from milvus_stages.milvus.client.pool import connections
from milvus_stages.milvus.client.server import Connection
from milvus_stages.milvus.collection import (
    CollectionInfo,
    CollectionState,
    UnfitError,
    describe,
    describe_index,
    find_vector_field,
    inspect_collection,
)
from milvus_stages.milvus.params import DEFAULT_NPROBE
from milvus_stages.milvus.requests import Request
from milvus_stages.milvus.search import MilvusSearch
from milvus_stages.milvus.settings import SearchSettings
from milvus_stages.milvus.state import LOAD_SECONDS, not_loaded_error, open_connection

_LITE_ROWS: Final = 100_000  # above which Milvus Lite, whose searches read every row, is slow


_LITE_NUMBERS: Final = 50_000_000  # numbers in all vectors; a larger database is not loaded for a check
_WASTE_ROWS: Final = 20_000  # from which a search of every list deserves a warning

_QUOTED: Final = re.compile(r'(?i:\b(?:iso|interval)\s+)?(?:"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')', re.DOTALL)
_NAME: Final = re.compile(r"(?<![\w.{$\[])[A-Za-z_]\w*(?!\w*\s*[(}])")
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "like", "is", "null", "true", "false", "exists"})


@dataclass
class Examination:
    """One examination of a search: what the checks work with, and what they leave for later ones.

    Args:
        settings: of the search.
        context: of the doctor's run.
        connection: to the server.
        connect_seconds: that connecting took.

    Attributes:
        call_seconds: that a call takes.
        info: the collection.
        state: the collection, if it fits the search; otherwise None.
        is_loaded: the collection is in memory, so that its rows can be read.
        was_loaded_here: it was loaded for this examination.
        rows: how many it holds.
    """

    settings: SearchSettings
    context: CheckContext
    connection: Connection
    connect_seconds: float
    call_seconds: float = 0.0
    info: CollectionInfo = field(init=False)
    state: CollectionState | None = None
    is_loaded: bool = False
    was_loaded_here: bool = False
    rows: int = 0

    @property
    def deadline(self) -> Deadline:
        """When the examination must be done."""
        return self.context.deadline

    @property
    def topic(self) -> str:
        """What the connection leads to."""
        return "database" if self.connection.is_lite else "server"

    @cached_property
    def reader(self) -> RowReader:
        """Reads rows of the collection."""
        return RowReader(self.connection, self.info, self.deadline)

    @property
    def has_text(self) -> bool:
        """Whether rows may have the configured text field."""
        text = self.settings.text_field
        return text is not None and (text in self.info.fields or self.info.dynamic)

    @cached_property
    def sample(self) -> Sample:
        """Rows of the collection, with their keys and texts."""
        text = [str(self.settings.text_field)] if self.has_text else []
        return self.reader.sample(self.rows, [self.info.primary, *text])

    def finding(self, error: Exception, topic: str, expression: str = "") -> Finding:
        """Return the finding that an error of a call makes."""
        settings = self.settings
        return Finding.of(failures.explain(error, settings.where, settings.token_env, expression), topic)

    def close(self) -> None:
        """Release what was loaded for the examination, and the connection."""
        try:
            if self.was_loaded_here and connections.users(self.connection) == 1:
                self.connection.client.release_collection(self.settings.collection, timeout=LOAD_SECONDS)
        finally:
            connections.release(self.connection)


@doctor(MilvusSearch)
def examine_search(stage: MilvusSearch, context: CheckContext) -> Iterator[Finding]:
    """Yield everything that can be found out about a search without changing anything."""
    once = stage.model_copy(update={"retry": RetrySettings(attempts=1)})  # a check reports how things are now
    began = time.perf_counter()
    try:
        if stage.is_lite:
            check_present(stage.uri)
        connection = open_connection(once, context.deadline)
    except StageError as error:
        found = Finding.of(error, "database" if stage.is_lite else "server")
        yield found if stage.is_lite else Finding.error(found.topic, f"{stage.uri}: {found.message}", found.next_step)
        return
    examination = Examination(stage, context, connection, time.perf_counter() - began)
    try:
        yield from check_server(examination)
        try:
            examination.info = describe(connection, stage.collection, context.deadline)
        except StageError as error:
            yield Finding.of(error, "collection")
            return
        for check in CHECKS:
            yield from check(examination)
    except Exception as error:
        yield _interrupted(examination, error)
    finally:
        examination.close()


def _interrupted(examination: Examination, error: Exception) -> Finding:
    """The finding that the examination ended early."""
    deadline, topic = examination.deadline, examination.topic
    late = isinstance(error, DeadlineError | TimeoutError)
    if not late and (deadline.remaining(at_most=1.0) or 0.0) > 0.0:
        return examination.finding(error, topic)
    step = "give the check more time (`--timeout`)"
    # Milvus Lite never keeps one waiting, and a server that has answered may just be far away.
    if examination.connection.is_lite or examination.call_seconds:
        return Finding.warning(topic, "timed out before everything was checked", step)
    return Finding.error(topic, "the server did not answer in time", f"check that it is healthy, or {step}")


def check_server(examination: Examination) -> Iterator[Finding]:
    """Report version, latency and token."""
    settings = examination.settings
    version = str(examination.connection.call(examination.deadline, "get_server_version"))
    began = time.perf_counter()
    examination.connection.call(examination.deadline, "has_collection", settings.collection)
    examination.call_seconds = time.perf_counter() - began
    if examination.connection.is_lite:
        yield Finding.ok("database", f"{settings.uri}, {version.replace('milvus_lite-', 'Milvus Lite ')}")
        return
    times = f"connected in {_ms(examination.connect_seconds)}, a call takes {_ms(examination.call_seconds)}"
    yield Finding.ok("server", f"{settings.uri}, Milvus {version}; {times}")
    variable = settings.token_env
    if settings.token():
        yield Finding.ok("token", f"the one in {variable} is accepted (a server without authentication accepts any)")
    else:
        unset = f" ({variable} is not set)" if variable else ""
        yield Finding.ok("token", f"none is sent{unset}, and none is required")


def check_collection(examination: Examination) -> Iterator[Finding]:
    """Report the collection's fields, and everything that does not fit the search."""
    settings, info = examination.settings, examination.info
    fields = [f"{name} ({info.dims[name]})" if name in info.dims else name for name in info.fields]
    names = ", ".join(fields[:12]) + (", …" if len(fields) > 12 else "")
    yield Finding.ok("collection", f"{settings.collection!r} exists, with the fields {names}")
    try:
        state = examination.state = inspect_collection(settings, examination.connection, examination.deadline)
    except UnfitError as error:
        for problem in error.problems:
            yield Finding.error(problem.field, problem.what, problem.next_step)
    else:
        text = f"the text comes from {settings.text_field!r}" if settings.text_field else "hits have no text"
        yield Finding.ok("fields", f"{text}; other fields of a hit: {', '.join(state.fields) or 'none'}")


def check_filter(examination: Examination) -> Iterator[Finding]:
    """Report names in the filter that the collection does not have. Other mistakes show up in the search."""
    expression, info = examination.settings.filter, examination.info
    if expression is None or info.dynamic:
        return
    for name in dict.fromkeys(_NAME.findall(_QUOTED.sub(" ", expression))):
        if name.lower() not in _KEYWORDS and name not in info.fields:
            problem = f"it uses {name!r}, which is not a field of the collection"
            yield Finding.error("filter", problem, suggestion(name, info.fields))


def check_dimension(examination: Examination) -> Iterator[Finding]:
    """Compare the dimension of the field with that of the encoder."""
    name = _vector_field(examination)
    if name is None:
        return
    dim, given, encoder = examination.info.dims[name], examination.context.dim, examination.context.dim_of
    if given in (None, dim):
        same = f", as does {encoder}" if given else ""
        yield Finding.ok("dimension", f"{name!r} holds vectors of {dim}{same}")
    else:
        yield Finding.error(
            "dimension",
            f"{name!r} holds vectors of {dim}, but {encoder} gives {given}",
            "encode queries with the model that the collection was made with, or rebuild it with `milvus-pipeline "
            "ingest`",
        )


def check_index(examination: Examination) -> Iterator[Finding]:
    """Report type and parameters of the index, and rows that are not in it."""
    name, settings, rows = _vector_field(examination), examination.settings, examination.info.rows
    if name is None:
        return
    index = describe_index(examination.connection, settings.collection, name, examination.deadline)
    if index is None:
        return  # reported with what does not fit
    nprobe = settings.params.get("nprobe", DEFAULT_NPROBE)
    text = f"{index.index_type}, {index.metric_type}"
    if index.nlist is not None:
        text += f", nlist {index.nlist}, nprobe {nprobe}"
        text += f"; for {rows:,} rows 4·√rows = {round(4 * rows**0.5):,} lists are usual" if rows else ""
    yield Finding.ok("index", text)
    if index.nlist and nprobe >= index.nlist and rows >= _WASTE_ROWS:
        yield Finding.warning(
            "nprobe",
            f"nprobe {nprobe} is not below nlist {index.nlist}: every search reads all {rows:,} rows",
            "lower params.nprobe; the recall that this check measures shows how far",
        )
    if index.pending:
        yield Finding.warning(
            "index",
            f"{index.pending:,} rows are not in the index yet, and are searched one by one",
            "wait until it is built; if it is never finished, check the server's index nodes",
        )


def check_memory(examination: Examination) -> Iterator[Finding]:
    """Report whether the collection is loaded; in a Lite database that only this check uses, load it meanwhile."""
    settings, connection = examination.settings, examination.connection
    if connection.load_state(settings.collection, examination.deadline) == "NotLoad" and _may_load(examination):
        try:
            connection.client.load_collection(settings.collection, timeout=LOAD_SECONDS)
            examination.was_loaded_here = True
        except Exception as error:
            step = "rebuild it with `milvus-pipeline ingest`, with an index type that Milvus Lite knows"
            found = examination.finding(error, "memory")
            yield Finding.error("memory", found.message, step)
    state = connection.load_state(settings.collection, examination.deadline)
    examination.is_loaded = state == "Loaded"
    if examination.was_loaded_here and examination.is_loaded:
        yield Finding.ok("memory", "it can be loaded, which each process does for itself")
    elif examination.is_loaded:
        yield Finding.ok("memory", "it is loaded")
    elif state == "Loading":
        yield Finding.warning("memory", "the server is still loading the collection", "wait until it is loaded")
    elif not settings.load:
        yield Finding.of(not_loaded_error(settings.where), "memory")
    elif examination.connection.is_lite:
        yield Finding.ok("memory", "not loaded for this check; each process loads it when it opens the stage")
    else:
        yield Finding.warning(
            "memory",
            "the collection is not loaded: opening the stage loads it; its rows and its recall were not checked",
            "load it before the first query, then check again",
        )


def _may_load(examination: Examination) -> bool:
    connection, info = examination.connection, examination.info
    small = info.rows * max(info.dims.values(), default=0) <= _LITE_NUMBERS
    return connection.is_lite and connections.users(connection) == 1 and examination.settings.load and small


def check_rows(examination: Examination) -> Iterator[Finding]:
    """Count the rows, and compare them with what a search requests."""
    settings, loaded = examination.settings, examination.is_loaded
    rows = examination.rows = examination.reader.count() if loaded else examination.info.rows
    examination.context.documents = rows
    fill = "fill it with `milvus-pipeline ingest`"
    if not rows and loaded:
        yield Finding.error("rows", "the collection is empty, so every query finds nothing", fill)
    elif not rows:
        text = "the server reports 0 rows, which may also mean that they are not flushed yet"
        yield Finding.warning("rows", text, f"{fill}; or flush it, and check again")
    elif settings.offset >= rows:
        text = f"{rows:,}, all of which `offset` {settings.offset:,} skips"
        yield Finding.error("rows", text, f"lower offset, or {fill}")
    elif settings.offset + settings.limit > rows:
        text = f"{rows:,}, fewer than offset + limit ({settings.offset:,} + {settings.limit:,}) request"
        yield Finding.warning("rows", text, f"lower limit, or {fill}")
    else:
        yield Finding.ok("rows", f"{rows:,}")
    if examination.connection.is_lite and rows > _LITE_ROWS:
        yield Finding.warning(
            "size",
            f"Milvus Lite reads all {rows:,} rows in every search, so it becomes slower with each of them",
            "put the collection on a Milvus server: only `uri` changes",
        )


def check_texts(examination: Examination) -> Iterator[Finding]:
    """Look for rows without text, and leave the texts of a sample to the stages that follow."""
    if not (examination.rows and examination.is_loaded and examination.has_text):
        return
    name, sample = str(examination.settings.text_field), examination.sample
    values = [row.get(name) for row in sample.rows]
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    examination.context.texts = texts
    where = "" if sample.spread else " (the first by key; others cannot be reached without a search)"
    if empty := len(values) - len(texts):
        yield Finding.warning(
            "texts",
            f"{share_text(empty, len(values), examination.rows)} have no text in {name!r}{where}; a reranker ranks "
            "them last, without a score",
            "leave them out when you fill the collection, or with a `filter`",
        )
    elif texts:
        lengths = sorted(map(len, texts))
        yield Finding.ok(
            "texts",
            f"none of {len(texts)} sampled{where} is empty; the median has {lengths[len(texts) // 2]:,} characters, "
            f"the longest {lengths[-1]:,}",
        )


def check_search(examination: Examination) -> Iterator[Finding]:
    """Search once with the stage's settings, then measure the recall."""
    state, settings = examination.state, examination.settings
    if state is None or not (examination.rows and examination.is_loaded):
        return
    keys = [row[examination.info.primary] for row in examination.sample.rows]
    vectors = examination.reader.vectors(state.anns_field, keys[:: max(1, len(keys) // QUERIES)][:QUERIES])
    if not len(vectors):
        vectors = np.eye(1, state.dim, dtype=np.float32)
    try:
        expression = filters.join((settings.filter,), settings.filter_params)
    except QueryError:
        expression = ""
        yield Finding.ok("filter", "it needs values from the query, so the searches of this check do not use it")
    params = state.search_params({})
    began = time.perf_counter()
    try:
        arguments = Request([0], [vectors[0]], expression, params).arguments(state)
        (answer,) = examination.connection.search(arguments, examination.deadline)
    except (DeadlineError, TimeoutError):
        raise  # not a fault of the search
    except Exception as error:
        yield examination.finding(error, "search", expression)
        return
    took = _ms(time.perf_counter() - began)
    if short := state.shortfall(len(answer), params, bool(expression)):
        yield Finding.warning("search", *short)
    elif not len(answer):
        step = "check filter, partition_names and the range in params"
        yield Finding.warning("search", f"a search finds nothing ({took})", step)
    else:
        level = f", {settings.consistency_level} consistency" if settings.consistency_level else ""
        yield Finding.ok("search", f"a search with these settings finds {len(answer):,} hits in {took}{level}")
    if examination.rows > 1:
        yield from recall_findings(state, examination.reader, vectors, examination.rows, expression)


CHECKS: Final[tuple[Callable[[Examination], Iterator[Finding]], ...]] = (
    check_collection,
    check_filter,
    check_dimension,
    check_index,
    check_memory,
    check_rows,
    check_texts,
    check_search,
)
"""The checks of a collection that exists, in an order in which each may use what the earlier ones found."""


def _vector_field(examination: Examination) -> str | None:
    try:
        return find_vector_field(examination.info, examination.settings)
    except UnfitError:
        return None  # reported with what does not fit


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.{0 if milliseconds >= 10 else 1}f} ms"
