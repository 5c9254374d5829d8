"""What ``milvus-pipeline doctor`` looks at in a search: server, collection, index, rows, texts, recall.

Nothing is changed. A server's collection that is not in memory stays out of it, so its rows are not looked at. Milvus
Lite keeps a collection in memory for this process alone: where nobody else in it uses the database, the collection is
loaded for the time of the check.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import numpy as np

from milvus_pipeline import DeadlineError, PipelineError, QueryError, RetrySettings, StageError
from milvus_pipeline.plugin import CheckContext, Finding, doctor
from milvus_stages.doctors.recall import QUERIES, recall_findings
from milvus_stages.doctors.sample import Asked
from milvus_stages.milvus import failures, filters
from milvus_stages.milvus.client.lite import check_present, lite_path
from milvus_stages.milvus.client.pool import shared
from milvus_stages.milvus.client.server import Connection, is_lite, load_state
from milvus_stages.milvus.collection import CollectionInfo, IndexInfo, described, index_of, vector_field
from milvus_stages.milvus.opening import LOAD_SECONDS, Opened, checked, connected
from milvus_stages.milvus.params import DEFAULT_NPROBE
from milvus_stages.milvus.requests import Job
from milvus_stages.milvus.search import MilvusSearch

_LITE_ROWS: Final = 100_000  # Milvus Lite looks at every row in a search
_LITE_NUMBERS: Final = 50_000_000  # numbers of all vectors; a database of more is not read for a check
_CALLS: Final = 50  # that a check makes, about
_WASTE_ROWS: Final = 20_000  # from which a search of every list is worth a word

_TEXT: Final = re.compile(r'(?i:\b(?:iso|interval)\s+)?(?:"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')', re.DOTALL)
_NAME: Final = re.compile(r"(?<![\w.{$\[])[A-Za-z_]\w*(?!\w*\s*[(}])")
_WORDS: Final = frozenset({"and", "or", "not", "in", "like", "is", "null", "true", "false", "exists"})


@doctor(MilvusSearch)
def search_findings(stage: MilvusSearch, context: CheckContext) -> Iterator[Finding]:
    """All that can be said of a search without changing anything."""
    lite = is_lite(stage.uri)
    if lite:
        try:
            check_present(stage.uri)
        except StageError as error:
            yield Finding.of(error, "database")
            return
    began = time.perf_counter()
    try:
        connection = connected(_once(stage), context.deadline)
    except StageError as error:
        yield Finding.of(_with_holder(error, stage.uri) if lite else error, "database" if lite else "server")
        return
    checkup = _Checkup(stage, context, connection)
    try:
        yield from checkup.findings(time.perf_counter() - began)
    except Exception as error:
        yield checkup.broken_off(error)
    finally:
        shared.release(connection)


class _Checkup:
    """One look at a search. The methods yield findings, and keep what later ones need."""

    def __init__(self, stage: MilvusSearch, context: CheckContext, connection: Connection) -> None:
        self._stage = stage
        self._context = context
        self._connection = connection
        self._deadline = context.deadline
        self._loaded = False
        self._loaded_here = False
        self._call_seconds = 0.0

    def findings(self, connecting: float) -> Iterator[Finding]:
        """Everything, in an order in which each makes sense of the next."""
        yield from self._server(connecting)
        try:
            info = described(self._connection, self._stage.collection, self._deadline)
        except StageError as error:
            yield Finding.of(error, "collection")
            return
        yield Finding.ok("collection", f"{self._stage.collection!r} is there, with the fields {_listed(info)}")
        state = None
        try:
            state = checked(self._stage, self._connection, self._deadline)
        except StageError as error:
            yield Finding.of(error, "index")
        else:
            yield Finding.ok("fields", self._fields(state))
        yield from self._filter(info)
        with suppress(StageError):
            field = vector_field(info, self._stage.anns_field)
            yield from self._dimension(info, field)
            yield from self._index(info, field)
        with self._memory(info) as fault:
            if fault is not None:
                yield fault
            yield from self._load_state()
            yield from self._rows(info, state)

    def broken_off(self, error: Exception) -> Finding:
        """What the error says that ended the look."""
        topic = "database" if self._connection.is_lite else "server"
        late = isinstance(error, DeadlineError | TimeoutError)
        if not late and (self._deadline.remaining(at_most=1.0) or 0.0) > 0.0:
            return Finding.of(failures.explained(error, self._stage.where, self._stage.token_env), topic)
        step = "give the check more time (`--timeout`)"
        # Milvus Lite is work of this process, and no waiting; and a server that is far away may be well.
        if self._connection.is_lite or _CALLS * self._call_seconds > (self._deadline.budget or 0.0):
            return Finding.warning(topic, "the time given was over before all was looked at", step)
        return Finding.error(topic, "the server did not answer in the time given", f"check that it is well, or {step}")

    def _server(self, connecting: float) -> Iterator[Finding]:
        version = str(self._connection.call(self._deadline, "get_server_version"))
        began = time.perf_counter()
        self._connection.call(self._deadline, "has_collection", self._stage.collection)
        self._call_seconds = time.perf_counter() - began
        if self._connection.is_lite:
            yield Finding.ok("database", f"{self._stage.uri}, {version.replace('milvus_lite-', 'Milvus Lite ')}")
            return
        said = f"connected in {_ms(connecting)}, a call takes {_ms(self._call_seconds)}"
        yield Finding.ok("server", f"{self._stage.uri}, Milvus {version}; {said}")
        variable = self._stage.token_env
        if self._stage.token():
            said = f"that of {variable} is accepted (a server without authentication takes any)"
        else:
            said = f"none is sent{f' ({variable} is not set)' if variable else ''}, and none is asked for"
        yield Finding.ok("token", said)

    def _fields(self, state: Opened) -> str:
        text = self._stage.text_field
        hit = f"the text comes from {text!r}" if text else "hits have no text"
        return f"{hit}; with it come {', '.join(state.fields) or 'no others'}"

    def _filter(self, info: CollectionInfo) -> Iterator[Finding]:
        """Names in the filter that the collection lacks. Expressions with more than names in them say less."""
        if self._stage.filter is None or info.dynamic:
            return
        names = [name for name in _NAME.findall(_TEXT.sub(" ", self._stage.filter)) if name.lower() not in _WORDS]
        for name in dict.fromkeys(names):
            if name not in info.fields:
                near = get_close_matches(name, list(info.fields), n=1)
                step = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(info.fields))}"
                yield Finding.error("filter", f"it names {name!r}, which the collection lacks", step)

    def _dimension(self, info: CollectionInfo, field: str) -> Iterator[Finding]:
        dim, given = info.dims[field], self._context.dim
        if given is None:
            yield Finding.ok("dimension", f"{field!r} holds vectors of {dim}")
        elif given == dim:
            yield Finding.ok("dimension", f"{field!r} holds vectors of {dim}, and so many {self._context.dim_of} gives")
        else:
            yield Finding.error(
                "dimension",
                f"{field!r} holds vectors of {dim}, but {self._context.dim_of} gives {given}",
                "encode queries with the model that the collection was made with, or make it anew with "
                "`milvus-pipeline ingest`",
            )

    def _index(self, info: CollectionInfo, field: str) -> Iterator[Finding]:
        index = index_of(self._connection, self._stage.collection, field, self._deadline)
        if index is None:
            return  # told with what does not fit
        probed = self._stage.params.get("nprobe", DEFAULT_NPROBE)
        yield Finding.ok("index", f"{index.index_type}, {index.metric_type}{_lists(index, probed, info.rows)}")
        if index.nlist and probed >= index.nlist and info.rows >= _WASTE_ROWS:
            yield Finding.warning(
                "nprobe",
                f"nprobe {probed} is not below nlist {index.nlist}: every search looks at all {info.rows:,} rows",
                "lower params.nprobe; the recall that this check measures says how far",
            )
        if waiting := self._unindexed(field):
            yield Finding.warning(
                "index",
                f"{waiting:,} rows are not in the index yet, and are searched one by one",
                "wait until it is built; if that does not come, look at the server's index nodes",
            )

    def _unindexed(self, field: str) -> int:
        for name in self._connection.call(self._deadline, "list_indexes", self._stage.collection):
            data = self._connection.call(self._deadline, "describe_index", self._stage.collection, name) or {}
            if data.get("field_name") == field:
                return int(data.get("pending_index_rows") or 0)
        return 0

    # -- memory -------------------------------------------------------------------------------------------------

    @contextmanager
    def _memory(self, info: CollectionInfo) -> Iterator[Finding | None]:
        """The collection as it is; that of a Lite database which only this check uses is loaded meanwhile."""
        connection, name = self._connection, self._stage.collection
        fault = None
        if self._state() == "NotLoad" and self._loads_for_itself(info):
            try:
                connection.client.load_collection(name, timeout=LOAD_SECONDS)
                self._loaded_here = True
            except Exception as error:
                told = failures.explained(error, self._stage.where, self._stage.token_env)
                step = "make it anew with `milvus-pipeline ingest`, with an index that Milvus Lite knows"
                fault = Finding.of(told, "memory", next_step=step)
        try:
            yield fault
        finally:
            if self._loaded_here and shared.users(connection) == 1:
                connection.client.release_collection(name, timeout=LOAD_SECONDS)

    def _loads_for_itself(self, info: CollectionInfo) -> bool:
        numbers = info.rows * max(info.dims.values(), default=0)
        alone = self._connection.is_lite and shared.users(self._connection) == 1
        return alone and self._stage.load and numbers <= _LITE_NUMBERS

    def _state(self) -> str:
        return load_state(self._connection, self._stage.collection, self._deadline)

    def _load_state(self) -> Iterator[Finding]:
        state = self._state()
        self._loaded = state == "Loaded"
        if self._loaded:
            said = "it can be loaded, which each process does for itself" if self._loaded_here else "it is loaded"
            yield Finding.ok("memory", said)
        elif state == "Loading":
            yield Finding.warning("memory", "the server is still loading the collection", "wait until it is loaded")
        elif not self._stage.load:
            yield Finding.error(
                "memory",
                "the collection is not loaded, and the stage may not load it (`load: false`)",
                "load it, or set `load: true`",
            )
        elif self._connection.is_lite:
            yield Finding.ok("memory", "not loaded for this check; each process loads it when it opens the stage")
        else:
            yield Finding.warning(
                "memory",
                "the collection is not loaded: opening the stage loads it; its rows and its recall were not looked at",
                "load it ahead of the first query, then check again",
            )

    # -- rows ---------------------------------------------------------------------------------------------------

    def _rows(self, info: CollectionInfo, state: Opened | None) -> Iterator[Finding]:
        asked = Asked(self._stage, self._connection, info, self._deadline)
        rows = asked.count() if self._loaded else info.rows
        self._context.documents = rows
        yield from self._count(rows)
        if not rows or not self._loaded:
            return
        text = self._stage.text_field
        known = text is not None and (text in info.fields or info.dynamic)
        sample = asked.sample(rows, [info.primary, text] if known and text else [info.primary])
        if known and text is not None:
            yield from self._texts(asked, [row.get(text) for row in sample.rows], rows, spread=sample.spread)
        if state is not None:
            keys = [row[info.primary] for row in sample.rows]
            chosen = keys[:: max(1, len(keys) // QUERIES)][:QUERIES]
            yield from self._searched(state, asked, asked.vectors(state.anns_field, chosen), rows)

    def _count(self, rows: int) -> Iterator[Finding]:
        stage = self._stage
        fill = "fill it with `milvus-pipeline ingest`"
        if not rows and self._loaded:
            yield Finding.error("rows", "the collection is empty, so every query finds nothing", fill)
        elif not rows:
            said = "the server counts no rows, which it does of what has not been written out yet, too"
            yield Finding.warning("rows", said, f"{fill}; or flush it, and check again")
        elif stage.offset >= rows:
            said = f"{rows:,}, of which `offset` {stage.offset:,} leaves out all"
            yield Finding.error("rows", said, f"lower offset, or {fill}")
        elif stage.offset + stage.limit > rows:
            ahead = f"offset + limit ({stage.offset:,} + {stage.limit:,})" if stage.offset else f"limit {stage.limit:,}"
            yield Finding.warning("rows", f"{rows:,}, fewer than {ahead} asks for", f"lower limit, or {fill}")
        else:
            yield Finding.ok("rows", f"{rows:,}")
        if self._connection.is_lite and rows > _LITE_ROWS:
            yield Finding.warning(
                "size",
                f"Milvus Lite looks at every one of the {rows:,} rows in a search, so the time grows with them",
                "put the collection on a Milvus server: only `uri` changes",
            )

    def _texts(self, asked: Asked, sample: list[Any], rows: int, *, spread: bool) -> Iterator[Finding]:
        field = str(self._stage.text_field)
        texts = [text for text in sample if isinstance(text, str) and text.strip()]
        self._context.texts = texts
        empty, of = len(sample) - len(texts), f"{len(sample)} sampled"
        if field in asked.info.fields and empty == sample.count(""):  # others without a text are not counted so
            with suppress(PipelineError, ValueError):
                # A server that cannot count by a filter leaves it to the sample.
                counted = _counted(asked, f'{field} == ""')
                if counted is not None and counted >= empty:
                    empty, of = counted, f"{rows:,}"
        where = "" if spread else " (the first ones by their keys; others cannot be reached without a search)"
        if empty:
            yield Finding.warning(
                "texts",
                f"{empty:,} of {of} rows have no text in {field!r}{where}; a reranker ranks them last, unscored",
                "leave them out when you fill the collection, or by a `filter`",
            )
        elif texts:
            middle = sorted(map(len, texts))[len(texts) // 2]
            yield Finding.ok(
                "texts",
                f"none is empty; of {len(texts)} sampled{where} the median has {middle:,} characters, the "
                f"longest {max(map(len, texts)):,}",
            )

    def _searched(self, state: Opened, asked: Asked, vectors: Any, rows: int) -> Iterator[Finding]:
        stage = self._stage
        try:
            expression = filters.joined((stage.filter,), stage.filter_params)
        except QueryError:
            expression = ""
            yield Finding.ok("filter", "it waits for values of the query, so the searches of this check go without it")
        if not len(vectors):
            vectors = np.eye(1, state.dim, dtype=np.float32)
        params = state.search_params({})
        arguments = Job([0], [vectors[0]], expression, params).arguments(state)
        began = time.perf_counter()
        try:
            (answer,) = state.connection.search(arguments, self._deadline)
        except (DeadlineError, TimeoutError):
            raise  # which is no fault of the search
        except Exception as error:
            yield Finding.of(failures.explained(error, stage.where, stage.token_env, expression), "search")
            return
        took = _ms(time.perf_counter() - began)
        if short := state.shortfall(len(answer), params, bool(expression)):
            yield Finding.warning("search", short, "see what the message says")
        elif not len(answer):
            step = "check filter, partition_names and the range in params"
            yield Finding.warning("search", f"a search finds nothing ({took})", step)
        else:
            level = f", {stage.consistency_level} consistency" if stage.consistency_level else ""
            yield Finding.ok("search", f"one with these settings gives {len(answer):,} hits in {took}{level}")
        if rows > 1:
            yield from recall_findings(state, asked, vectors, rows, expression, self._deadline)


def _once(stage: MilvusSearch) -> MilvusSearch:
    """The same stage, which tries once: a check tells how things are now."""
    return stage.model_copy(update={"retry": RetrySettings(attempts=1)})


def _counted(asked: Asked, expression: str) -> int | None:
    try:
        return asked.count(expression)
    except (PipelineError, TimeoutError):
        raise
    except Exception:  # an engine that cannot read the expression
        return None


def _with_holder(error: StageError, uri: str) -> StageError:
    """The error that a Lite database cannot be opened, with the process that holds it where the system tells."""
    found = _holder(Path(lite_path(uri)) / "LOCK") if "another process holds" in str(error) else None
    if found is not None:
        error.what = error.what.replace("another process", f"another process ({found})", 1)
    return error


def _holder(lock: Path) -> str | None:
    """Number and name of the process that has locked a file; None where that cannot be found out."""
    with suppress(OSError, ValueError, IndexError):
        wanted = str(lock.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == wanted and int(words[4]) != os.getpid():
                name = Path("/proc", words[4], "comm").read_text(encoding="utf-8").strip()
                return f"number {words[4]}, {name}"
    return None


def _listed(info: CollectionInfo) -> str:
    fields = [f"{name} ({info.dims[name]})" if name in info.dims else name for name in info.fields]
    return ", ".join(fields[:12]) + (", …" if len(fields) > 12 else "")


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.{0 if milliseconds >= 10 else 1}f} ms"


def _lists(index: IndexInfo, probed: int, rows: int) -> str:
    """What is to be said of an index that has lists."""
    if index.nlist is None:
        return ""
    usual = f"; for {rows:,} rows 4·√rows = {round(4 * rows**0.5):,} lists are usual" if rows else ""
    return f", nlist {index.nlist}, nprobe {probed}{usual}"
