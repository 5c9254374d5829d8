"""Approximate nearest-neighbour search in a Milvus collection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import PrivateAttr

from milvus_pipeline import CollectionSpec, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.pool import connections
from milvus_stages.milvus.execute import BatchSearch
from milvus_stages.milvus.identity import search_identity
from milvus_stages.milvus.settings import SearchSettings
from milvus_stages.milvus.state import OpenCollection, open_collection
from milvus_stages.milvus.write import Writer


class MilvusSearch(SearchSettings):
    """Finds the entities whose vectors are nearest to the query's: on a Milvus server, or in a Milvus Lite file.

    A hit's score rises with relevance whatever the metric: the inner product for IP (unbounded), the cosine for
    COSINE (-1 to 1), and for L2 the negative of the squared distance that Milvus returns (0 at best). Ties are
    ordered by primary key. All queries of a batch with the same filter and parameters are one call.

    On opening, the stage checks that the collection fits (fields, dimension, metric, index, load state); every query
    is checked before it is sent, since the engines accept much that makes their answers wrong.

    Without a ``timeout`` at the stage, the pipeline or the call, a server has 30 seconds to answer one search with all
    its repetitions; waiting for a collection that is being loaded does not count.

    A collection that is dropped or recreated while the stage is open is noticed when a search fails or its answer
    looks different. It is then inspected again, and searched as it is now if it fits the stage.
    """

    type: ClassVar[str] = "milvus_search"
    needs: ClassVar[frozenset[str]] = frozenset({"vector"})
    gives: ClassVar[frozenset[str]] = frozenset({"hits", "text"})

    _opened: OpenCollection | None = PrivateAttr(default=None)

    def provides(self) -> frozenset[str]:
        """Hits, with text unless ``text_field`` is None."""
        return self.gives if self.text_field is not None else self.gives - {"text"}

    def setup(self) -> None:
        """Connect, check that the collection fits, and load it if it is not loaded and ``load`` allows it.

        Loading is waited for only as long as servers have to answer: it continues after that, and queries wait for it
        within their own deadlines.

        Raises:
            StageError: the server cannot be reached within ``timeout``, it kept failing a moment ago, or the collection
                does not fit; the message lists every problem found.
        """
        self._opened = open_collection(self, self.opening)
        try:
            with failures.explained(self.where, self.token_env, self.load):
                self._opened.load(Deadline() if self.is_lite else self.opening)
        except BaseException:
            self.teardown()
            raise

    def teardown(self) -> None:
        """Release the connection, which is closed if nobody else uses it."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def aclose(self) -> None:
        """``close`` without blocking the event loop; first closes what was opened for this event loop alone."""
        opened = self._opened
        if opened is not None and self._users == 1 and connections.users(opened.connection) == 1:
            await opened.connection.aclose_here()
        await super().aclose()

    @property
    def opened(self) -> OpenCollection:
        """The open collection.

        Raises:
            StageError: the stage is not open, or was opened before this process was forked.
        """
        if self._opened is None:
            raise StageError(f"{self.name} is not open", "call open() first, or run it in a pipeline")
        if self._opened.connection.process != os.getpid():
            raise StageError(
                "the stage was opened before this process was forked, and the connection belongs to the parent",
                "make a pipeline in each process, after the fork",
                place=self.where,
            )
        return self._opened

    def writer(self, spec: CollectionSpec) -> Writer:
        """Return what makes this stage's collection, for ``ingest``. The stage need not be open.

        Raises:
            IngestError: the specification does not fit this stage.
        """
        return Writer(self, spec)

    def identity(self) -> Mapping[str, Any]:
        """Schema, index and number of rows of the collection as it is now, and the version of its server.

        Replacing rows by as many others does not change it.
        """
        return search_identity(self.opened)

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Retrieve the hits of every query."""
        batch = BatchSearch(self.opened, results, context)
        batch.run()
        return [result.with_hits(batch.hits.get(position, [])) for position, result in enumerate(results)]

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop; calls with different filters overlap."""
        batch = BatchSearch(self.opened, results, context)
        await batch.arun()
        return [result.with_hits(batch.hits.get(position, [])) for position, result in enumerate(results)]
