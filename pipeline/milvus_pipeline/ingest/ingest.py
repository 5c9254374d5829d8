"""Records into a collection: checked, embedded and written in batches by the pipeline's own stages.

This module knows no client and no model. The stage that searches the collection also writes it, and the stage that
encodes queries encodes the documents, so that the two cannot disagree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from milvus_pipeline.config.collection import CollectionSpec
from milvus_pipeline.errors import IngestError, PipelineError
from milvus_pipeline.ingest.rows import RowMaker, check_vectors
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text

if TYPE_CHECKING:
    import numpy.typing as npt


@runtime_checkable
class Embedder(Protocol):
    """A stage that turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the texts' vectors, ``(len(texts), dim)``, encoded as queries are. The stage is open."""


class CollectionWriter(Protocol):
    """Makes one collection. ``open`` is called first and ``close`` last, whatever happens between them."""

    @property
    def collection(self) -> str:
        """Name of the collection."""

    @property
    def text_field(self) -> str | None:
        """The field whose text is embedded; None if rows must have vectors."""

    def open(self, *, overwrite: bool = False) -> None:
        """Connect. Raises IngestError if the collection exists and ``overwrite`` is False."""

    def create(self, dim: int) -> None:
        """Make the empty collection for vectors of ``dim`` numbers."""

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Write rows of the schema's fields. Return the number written."""

    def finish(self) -> int:
        """Make the rows searchable under the collection's name. Return the number of rows."""

    def abort(self) -> None:
        """Remove what was not finished."""

    def close(self) -> None:
        """Close the connection."""


@runtime_checkable
class CollectionStore(Protocol):
    """A stage that can make the collection it searches."""

    def writer(self, spec: CollectionSpec) -> CollectionWriter:
        """Return its writer. Raises IngestError if the specification does not fit the stage, which need not be open."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The outcome of ``ingest``.

    Args:
        collection: the collection that was made.
        rows: the number of rows in it.
        seconds: wall time.
        warnings: what the user should know.
    """

    collection: str
    rows: int
    seconds: float
    warnings: tuple[str, ...] = ()


def ingest(
    pipeline: Pipeline,
    records: Iterable[Mapping[str, Any]],
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Make the collection that the pipeline's ``collection:`` section describes, and fill it.

    Memory is constant except for the primary keys, which are kept to find duplicates.

    Args:
        pipeline: with a ``collection``, a stage that searches it, and one that encodes unless all records have
            vectors. It need not be open.
        records: mappings; the ``source`` of each field names the keys that fill it.
        overwrite: replace a collection of that name. The old one stays until all rows of the new one are written.
        on_progress: called with the number of rows written so far, after every batch.

    Raises:
        IngestError: the pipeline or a record does not fit, the collection exists, or writing failed. No unfinished
            collection is left behind.
        StageError: the server cannot be reached, or the encoder failed.
    """
    started = time.perf_counter()
    spec, store, embedder = _parts(pipeline)
    writer = store.writer(spec)
    with ExitStack() as stack:
        stack.callback(writer.close)
        writer.open(overwrite=overwrite)
        if isinstance(embedder, Stage):
            embedder.open()
            stack.callback(embedder.close)
        maker = RowMaker(spec, writer.text_field)
        try:
            done = 0
            for rows, dim in _batches(maker, records, spec, embedder):
                if not done:
                    writer.create(dim)
                done += writer.insert(rows)
                if on_progress is not None:
                    on_progress(done)
            if not done:
                where = f"collection {writer.collection!r}"
                raise IngestError("there are no records", "nothing was made", place=where)
            count = writer.finish()
        except BaseException:  # Ctrl-C too
            with suppress(Exception):
                writer.abort()
            raise
    return IngestReport(writer.collection, count, time.perf_counter() - started, tuple(maker.warnings()))


def _batches(
    maker: RowMaker, records: Iterable[Mapping[str, Any]], spec: CollectionSpec, embedder: Embedder | None
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield batches of complete rows, with the dimension of their vectors."""
    vector, dim = spec.vector.name, spec.vector.dim
    source = iter(records)
    first = 1
    while batch := list(islice(source, spec.batch_size)):
        rows = [maker.row(record, number) for number, record in enumerate(batch, start=first)]
        bare = [index for index, row in enumerate(rows) if vector not in row]
        if bare:
            texts = [maker.text(rows[index], first + index) for index in bare]
            for index, values in zip(bare, _vectors(embedder, texts, spec), strict=True):
                rows[index][vector] = values
        dim = check_vectors(rows, vector, dim, first)
        yield rows, dim
        first += len(batch)


def _vectors(embedder: Embedder | None, texts: list[str], spec: CollectionSpec) -> npt.NDArray[np.float32]:
    if embedder is None:
        raise IngestError(
            f"the records have no {spec.vector.name!r}, and no stage before the search can make vectors",
            "put an encode stage first, or give every record its vector",
        )
    try:
        return embedder.embed(texts)
    except PipelineError:
        raise
    except Exception as error:
        raise IngestError(f"the encoder failed on {len(texts)} texts: {error_text(error)}") from error


def _parts(pipeline: Pipeline) -> tuple[CollectionSpec, CollectionStore, Embedder | None]:
    """Return the specification, the stage to write for, and the last encoder before it.

    Raises:
        IngestError: one is missing, or it is not clear which stage is meant.
    """
    if pipeline.collection is None:
        raise IngestError(
            "has no `collection:` section, which describes the fields and the index", "add one", place=pipeline.name
        )
    stores = [position for position, stage in enumerate(pipeline.stages) if isinstance(stage, CollectionStore)]
    if len(stores) != 1:
        names = ", ".join(pipeline.stages[position].name for position in stores) or "none"
        what = f"must have one stage whose collection can be made, such as milvus_search, got {names}"
        raise IngestError(what, place=pipeline.name)
    before = pipeline.stages[: stores[0]]
    embedders: list[Embedder] = [stage for stage in before if isinstance(stage, Embedder)]
    store = pipeline.stages[stores[0]]
    assert isinstance(store, CollectionStore)  # noqa: S101 - for type checkers
    return pipeline.collection, store, embedders[-1] if embedders else None
