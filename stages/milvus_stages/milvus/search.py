"""Approximate nearest-neighbour search in a Milvus collection."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from milvus_pipeline import BreakerSettings, CollectionSpec, PipelineError, RetrySettings, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, Stage, breaker_for
from milvus_stages.milvus import failures, filters
from milvus_stages.milvus.client.pool import shared
from milvus_stages.milvus.client.server import check_uri, closed_error, is_https, is_lite
from milvus_stages.milvus.client.tls import TLS
from milvus_stages.milvus.execute import Batch
from milvus_stages.milvus.identity import search_identity
from milvus_stages.milvus.opening import Opened, opened
from milvus_stages.milvus.params import numbered, problem
from milvus_stages.milvus.renewal import Renewal
from milvus_stages.milvus.requests import MAX_WINDOW
from milvus_stages.milvus.write import Writer
from milvus_stages.privacy.secrets import check_variable, environment


class MilvusSearch(Stage):
    """Finds the entities whose vectors are nearest to the query's: on a Milvus server, or in a Milvus Lite file.

    A hit's score rises with relevance whatever the metric: the inner product for IP (unbounded), the cosine for
    COSINE (-1 to 1), and for L2 the negative of the squared distance that Milvus returns (0 at best). Ties are
    ordered by primary key. All queries of a batch with the same filter and parameters are one call.

    The stage checks when it opens that the collection fits (fields, dimension, metric, index, load state), and every
    query before it is sent, since the engines accept much that makes their answers wrong.

    Without a ``timeout``, neither here nor at the pipeline nor at the call, a server has 30 seconds to answer one
    search with all of its repetitions; waiting for a collection that is being loaded does not count.

    A collection that is dropped, or made anew, while the stage is open is noticed when a search fails or its answer
    looks different: it is looked at again, and searched as it is now where it fits the stage.
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
    breaker: Annotated[
        BreakerSettings | None,
        Field(
            description="When a server that fails again and again is left alone; null for never. Not for Milvus Lite."
        ),
    ] = BreakerSettings(failures=5, wait=2.0)

    _opened: Opened | None = PrivateAttr(default=None)
    _renewal: Renewal | None = PrivateAttr(default=None)

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

        Loading is not waited for beyond the time that servers have to answer: it goes on, and queries wait for it, each
        for as long as it has.

        Raises:
            StageError: the server cannot be reached within ``timeout``, or the collection does not fit; the message
                holds every problem found. Or the server failed again and again a moment ago, and is not called now.
        """
        state = opened(self)
        self._opened, self._renewal = state, Renewal(self)
        try:
            self._renewal.begin(state, Deadline() if is_lite(self.uri) else self.opening)
        except Exception as error:
            self.teardown()
            explained = failures.explained(error, self.where, self.token_env, loads=self.load)
            raise explained from explained.__cause__

    def teardown(self) -> None:
        """Give the connection back; its last user closes it."""
        if self._renewal is not None:
            self._renewal.end()
            self._renewal = None
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

    def identity(self) -> Mapping[str, Any]:
        """Schema, index and number of rows of the collection as it is now, and the version of its server.

        Rows that were replaced by as many others are not noticed.
        """
        return search_identity(self.state())

    # -- work ---------------------------------------------------------------------------------------------------

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Retrieve the hits of every query."""
        batch = Batch(self, results, context)
        batch.run()
        return [result.with_hits(batch.hits.get(position, [])) for position, result in enumerate(results)]

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop; calls with different filters overlap."""
        batch = Batch(self, results, context)
        await batch.arun()
        return [result.with_hits(batch.hits.get(position, [])) for position, result in enumerate(results)]

    def state(self) -> Opened:
        """The collection as it was found last, with the connection to it. StageError where the stage is not open."""
        if self._opened is None:
            raise StageError(f"{self.name} is not open", "call open() first, or run it in a pipeline")
        if self._opened.connection.process != os.getpid():
            raise StageError(
                ("the stage was opened before this process was forked, and its connection is the parent's"),
                "make a pipeline in each process, after the fork",
                place=self.where,
            )
        return self._opened

    @property
    def renewal(self) -> Renewal:
        """Where a collection is looked at again, or loaded."""
        if self._renewal is None:
            raise closed_error()
        return self._renewal

    @contextmanager
    def guarding(self, seconds: float | None) -> Iterator[None]:
        """Round a call to the server: it is not made where the server failed again and again a moment ago.

        Args:
            seconds: that the call has.
        """
        if self.breaker is None or is_lite(self.uri):
            yield
            return
        breaker = breaker_for((self.uri, self.db_name), f"Milvus at {self.uri}", self.breaker)
        raised: Exception | None = None
        try:
            with breaker.guarding(lambda error: failures.says_unreachable(raised or error, seconds)):
                try:
                    yield
                except PipelineError:
                    raise
                except Exception as error:
                    # The breaker tells the kind of the last failure, which pymilvus's errors do not have.
                    raised = error
                    raise StageError("the call failed", reason_code=failures.reason_of(error)) from error
        except StageError:
            if raised is None:
                raise
        if raised is not None:
            raise raised
