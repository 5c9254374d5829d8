"""Approximate nearest-neighbour search in a Milvus collection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from milvus_pipeline import (
    CheckContext,
    CollectionSpec,
    Context,
    Deadline,
    Finding,
    Hit,
    RetrySettings,
    SearchResult,
    Stage,
    StageError,
    async_retrying,
    retrying,
)
from milvus_stages._secrets import check_variable, environment
from milvus_stages.retrieve import failures, filters
from milvus_stages.retrieve.answers import hits_of
from milvus_stages.retrieve.batch import MAX_WINDOW, Job, jobs_of
from milvus_stages.retrieve.checkup import search_findings
from milvus_stages.retrieve.connection import check_uri, is_https, is_lite
from milvus_stages.retrieve.opening import LOAD_SECONDS, Opened, ensure_loaded, opened
from milvus_stages.retrieve.params import numbered, problem
from milvus_stages.retrieve.sharing import shared
from milvus_stages.retrieve.tls import TLS
from milvus_stages.retrieve.writer import Writer

_CALLS_AT_ONCE = 8  # searches of one batch that an event loop has under way, where their filters differ


class MilvusSearch(Stage):
    """Finds the entities whose vectors are nearest to the query's: on a Milvus server, or in a Milvus Lite file.

    A hit's score rises with relevance whatever the metric: the inner product for IP (unbounded), the cosine for
    COSINE (-1 to 1), and for L2 the negative of the squared distance that Milvus returns (0 at best). Ties are
    ordered by primary key. All queries of a batch with the same filter and parameters are one call.

    The stage checks when it opens that the collection fits (fields, dimension, metric, index, load state), and every
    query before it is sent, since the engines accept much that makes their answers wrong.

    Without a ``timeout``, neither here nor at the pipeline nor at the call, a server has 30 seconds to answer one
    search with all of its repetitions; waiting for a collection that is being loaded does not count.
    """

    type: ClassVar[str] = "milvus_search"
    needs: ClassVar[frozenset[str]] = frozenset({"vector"})
    gives: ClassVar[frozenset[str]] = frozenset({"hits", "text"})

    uri: Annotated[
        str, Field(description="Server (http, https, tcp or unix), or a path that ends in .db for Milvus Lite.")
    ] = "./milvus.db"
    token_env: Annotated[
        str | None,
        Field(description="Environment variable that holds the token: user:password, or an API key. May be unset."),
    ] = "MILVUS_TOKEN"  # noqa: S105 - the variable's name
    tls: Annotated[
        TLS | None, Field(description="CA, client certificate and name of a server of https://, as files.")
    ] = None
    db_name: Annotated[str, Field(description="Database on the server; its default one if empty.")] = ""
    collection: Annotated[str, Field(min_length=1, description="The collection to search.")]
    anns_field: Annotated[
        str | None, Field(description="The vector field to search; the collection's only one by default.")
    ] = None
    index_type: Annotated[
        str, Field(min_length=1, description="Kind of index that the field has. AUTOINDEX leaves it to the server.")
    ] = "IVF_FLAT"
    metric_type: Annotated[
        Literal["IP", "COSINE", "L2"], Field(description="Metric that the index was built with.")
    ] = "IP"
    params: Annotated[
        dict[str, Any],
        Field(
            description="Search parameters of the index, such as nprobe (16 by default for IVF) or ef; radius and "
            "range_filter for a range search."
        ),
    ] = {}
    limit: Annotated[int, Field(ge=1, le=MAX_WINDOW, description="Hits to retrieve for a query.")] = 10
    offset: Annotated[int, Field(ge=0, lt=MAX_WINDOW, description="Best hits to leave out.")] = 0
    filter: Annotated[
        str | None, Field(description="Boolean expression that hits must fulfil; {name} stands for a value.")
    ] = None
    filter_params: Annotated[
        dict[str, Any], Field(description="Values for the {name} places: text, numbers, true or false, or lists.")
    ] = {}
    partition_names: Annotated[
        list[str] | None, Field(min_length=1, description="Partitions to search; all by default.")
    ] = None
    output_fields: Annotated[
        list[str] | None,
        Field(description="Fields to bring with a hit; by default all of the schema that are not vectors."),
    ] = None
    text_field: Annotated[
        str | None, Field(description="Field that becomes the hit's text; null for hits without text.")
    ] = "text"
    consistency_level: Annotated[
        Literal["Strong", "Bounded", "Session", "Eventually"] | None,
        Field(description="How fresh the data must be; the collection's own level by default."),
    ] = None
    group_by_field: Annotated[
        str | None, Field(description="At most one hit a value of this field. Milvus 2.4 and later, and Milvus Lite.")
    ] = None
    round_decimal: Annotated[
        int | None, Field(ge=0, le=6, description="Digits after the point that scores are rounded to.")
    ] = None
    load: Annotated[
        bool, Field(description="Load the collection where it is not in memory; false makes that an error.")
    ] = True
    # gRPC lets a second pass before it connects again, which the attempts together have to outlast.
    retry: Annotated[RetrySettings, Field(description="How calls that fail for a passing reason are repeated.")] = (
        RetrySettings(attempts=5, min_wait=0.2, max_wait=2.0)
    )

    _opened: Opened | None = PrivateAttr(default=None)

    # -- configuration ------------------------------------------------------------------------------------------

    @field_validator("uri", mode="before")
    @classmethod
    def _uri_from_path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("uri")
    @classmethod
    def _uri_that_connects(cls, value: str) -> str:
        return check_uri(value)

    @field_validator("token_env")
    @classmethod
    def _name_not_token(cls, value: str | None) -> str | None:
        return None if value is None else check_variable(value)

    @field_validator("params")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        return numbered(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.limit + self.offset > MAX_WINDOW:
            raise ValueError(
                f"limit + offset must be at most {MAX_WINDOW}, is {self.limit + self.offset}; Milvus looks no further"
            )
        if is_lite(self.uri) and self.db_name:
            raise ValueError("db_name: belongs to a server; for Milvus Lite, name another file in `uri`")
        if self.tls is not None and not is_https(self.uri):
            raise ValueError("tls: belongs to a server of https://; write it in `uri`, or leave `tls` out")
        if found := problem(self.params, self.index_type, self.metric_type):
            raise ValueError(found)
        filters.check(self.filter, self.filter_params)
        return self

    def provides(self) -> frozenset[str]:
        """Hits, with text unless ``text_field`` is None."""
        return self.gives if self.text_field is not None else self.gives - {"text"}

    @property
    def where(self) -> str:
        """Collection and server, for messages."""
        return f"collection {self.collection!r} at {self.uri}"

    # -- life ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Connect, check that the collection fits, and load it where that is needed and allowed.

        Raises:
            StageError: the server cannot be reached within ``timeout``, or the collection does not fit; the message
                holds every problem found.
        """
        self._opened = opened(self)

    def teardown(self) -> None:
        """Give the connection back; its last user closes it."""
        if self._opened is not None:
            shared.release(self._opened.connection)
            self._opened = None

    async def aclose(self) -> None:
        """``close`` without blocking the event loop; closes what was opened for this event loop alone first."""
        state = self._opened
        if state is not None and self._users == 1 and shared.users(state.connection) == 1:
            await state.connection.aclose_here()
        await super().aclose()

    def token(self) -> str:
        """The token, from the environment; empty where there is none."""
        return environment(self.token_env) if self.token_env else ""

    def writer(self, spec: CollectionSpec) -> Writer:
        """What makes this stage's collection anew, for ``ingest``. The stage need not be open.

        Raises:
            IngestError: the specification does not fit this stage.
        """
        return Writer(self, spec)

    def check(self, context: CheckContext) -> Iterable[Finding]:
        """Server, collection, fields, dimension, index, load state, rows, texts, one search, and its recall."""
        return search_findings(self, context)

    # -- work ---------------------------------------------------------------------------------------------------

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Retrieve the hits of every query."""
        state = self._state()
        jobs = jobs_of(results, state, context)
        hits: dict[int, list[Hit]] = {}
        while jobs:
            job = jobs.popleft()
            try:
                deadline = state.search_deadline(context.deadline)
                policy = retrying(self.retry, deadline, state.retryable)
                answers: Any = policy(self._search, state, job, deadline, context)
            except Exception as error:
                self._after(error, job, jobs, context)
            else:
                self._read(answers, job, state, hits, context)
        return [result.with_hits(hits.get(position, [])) for position, result in enumerate(results)]

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop; calls with different filters overlap."""
        state = self._state()
        jobs = jobs_of(results, state, context)
        hits: dict[int, list[Hit]] = {}

        async def work() -> None:
            while jobs:
                job = jobs.popleft()
                try:
                    deadline = state.search_deadline(context.deadline)
                    policy = async_retrying(self.retry, deadline, state.retryable)
                    answers: Any = await policy(self._asearch, state, job, deadline, context)
                except Exception as error:
                    self._after(error, job, jobs, context)
                else:
                    self._read(answers, job, state, hits, context)

        done = await asyncio.gather(*(work() for _ in range(min(_CALLS_AT_ONCE, len(jobs)))), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        return [result.with_hits(hits.get(position, [])) for position, result in enumerate(results)]

    def _state(self) -> Opened:
        if self._opened is None:
            raise StageError(f"{self.name} is not open; call open() first, or run it in a pipeline")
        return self._opened

    def _search(self, state: Opened, job: Job, deadline: Deadline, context: Context) -> Any:
        arguments = job.arguments(state)
        try:
            return state.connection.search(arguments, deadline)
        except Exception as error:
            if not failures.is_not_loaded(error):
                raise
        self._load_again(state, context)
        return state.connection.search(arguments, state.search_deadline(context.deadline))

    async def _asearch(self, state: Opened, job: Job, deadline: Deadline, context: Context) -> Any:
        arguments = job.arguments(state)
        try:
            return await state.connection.asearch(arguments, deadline)
        except Exception as error:
            if not failures.is_not_loaded(error):
                raise
        await asyncio.to_thread(self._load_again, state, context)
        return await state.connection.asearch(arguments, state.search_deadline(context.deadline))

    def _load_again(self, state: Opened, context: Context) -> None:
        """Load a collection that was released under us, or wait for one that a restarted server still loads."""
        ensure_loaded(self, state.connection, context.deadline, context.deadline.remaining(at_most=LOAD_SECONDS))

    def _after(self, error: Exception, job: Job, jobs: deque[Job], context: Context) -> None:
        """What follows from a failed call: smaller calls, failed queries, or the end of the batch."""
        if failures.is_too_large(error) and len(job.positions) > 1:
            jobs.extendleft(reversed(job.halves()))
            return
        explained = failures.explained(error, self.where, self.token_env, job.expression)
        if isinstance(error, TimeoutError) or failures.is_transient(error):
            jobs.clear()  # the others would wait for the same server
            context.deadline.check()
            raise explained
        for position in job.positions:
            context.fail(position, explained)

    def _read(self, answers: Any, job: Job, state: Opened, hits: dict[int, list[Hit]], context: Context) -> None:
        """Turn the answers of a call into hits, and report on each query."""
        for position, answer in zip(job.positions, answers, strict=True):
            try:
                hits[position] = hits_of(
                    answer,
                    stage=self.name,
                    text_field=self.text_field,
                    primary=state.info.primary,
                    fields=state.fields,
                    rising=self.metric_type == "L2",
                    decimals=self.round_decimal,
                )
            except StageError as error:
                context.fail(position, error)
                continue
            context.note(position, returned=len(hits[position]), requested=self.limit)
            if warning := state.shortfall(len(hits[position]), job.params, bool(job.expression)):
                context.warn(warning, position)
