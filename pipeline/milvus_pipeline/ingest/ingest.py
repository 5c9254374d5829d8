"""Records into a collection: embedded, checked and written in batches, by the stages of the pipeline itself.

This module knows no client and no model. The stage that searches also says how its collection is written, and the
stage that encodes queries encodes the documents: so the two cannot disagree.
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
from milvus_pipeline.ingest.rows import RowMaker, checked_vectors
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text

if TYPE_CHECKING:
    import numpy.typing as npt


@runtime_checkable
class Embedder(Protocol):
    """A stage that turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The texts' vectors, ``(len(texts), dim)``, as queries are encoded too. The stage is open."""


class CollectionWriter(Protocol):
    """Makes one collection. ``open`` comes first, ``close`` last, whatever happens between them."""

    @property
    def collection(self) -> str:
        """Name of the collection."""

    @property
    def text_field(self) -> str | None:
        """The field whose text is embedded; None where rows must bring their vectors."""

    def open(self, *, overwrite: bool = False) -> None:
        """Connect. IngestError where the collection exists already and ``overwrite`` is False."""

    def create(self, dim: int) -> None:
        """Make the collection, empty, for vectors of ``dim`` numbers."""

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Write rows of the schema's fields; the number written."""

    def finish(self) -> int:
        """Make the rows searchable under the collection's name; the number of rows."""

    def abort(self) -> None:
        """Undo what was not finished."""

    def close(self) -> None:
        """Let go of the connection."""


@runtime_checkable
class CollectionStore(Protocol):
    """A stage whose collection can be made."""

    def writer(self, spec: CollectionSpec) -> CollectionWriter:
        """What makes it. IngestError where the specification does not fit the stage. The stage need not be open."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ``ingest`` did.

    Args:
        collection: the collection that was made.
        rows: the number of rows in it.
        seconds: wall time.
        warnings: what the reader should know.
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

    Memory does not grow with the number of records, but for their keys, which are kept to find duplicates.

    Args:
        pipeline: with a ``collection``, a stage that searches it, and one that encodes unless all records bring
            their vectors. Need not be open.
        records: mappings; the ``source`` of each field names the keys that fill it.
        overwrite: replace a collection of that name. The old one stays until all rows of the new are written.
        on_progress: called with the number of rows written so far, after every batch.

    Raises:
        IngestError: the pipeline or a record does not fit, the collection exists, or writing failed. Nothing half
            made is left behind.
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
            rows = _written(writer, _embedded(maker, records, spec, embedder), on_progress)
        except BaseException:  # Ctrl-C too
            with suppress(Exception):
                writer.abort()
            raise
    return IngestReport(writer.collection, rows, time.perf_counter() - started, tuple(maker.warnings()))


def _written(
    writer: CollectionWriter,
    batches: Iterator[tuple[list[dict[str, Any]], int]],
    on_progress: Callable[[int], None] | None,
) -> int:
    """Write the batches; the number of rows in the collection."""
    done = 0
    for rows, dim in batches:
        if not done:
            writer.create(dim)
        done += writer.insert(rows)
        if on_progress is not None:
            on_progress(done)
    if not done:
        raise IngestError("there are no records", "nothing was made", place=f"collection {writer.collection!r}")
    return writer.finish()


def _embedded(
    maker: RowMaker, records: Iterable[Mapping[str, Any]], spec: CollectionSpec, embedder: Embedder | None
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Batches of complete rows, with the dimension of their vectors."""
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
        dim = checked_vectors(rows, vector, dim, first, from_encoder=set(bare))
        yield rows, dim
        first += len(batch)


def _vectors(embedder: Embedder | None, texts: list[str], spec: CollectionSpec) -> npt.NDArray[np.float32]:
    if embedder is None:
        raise IngestError(
            (f"the records bring no {spec.vector.name!r}, and no stage before the search can make vectors"),
            "put an encode stage first, or give every record its vector",
        )
    try:
        return embedder.embed(texts)
    except PipelineError:
        raise
    except Exception as error:
        raise IngestError(f"the encoder failed on {len(texts)} texts: {error_text(error)}") from error


def _parts(pipeline: Pipeline) -> tuple[CollectionSpec, CollectionStore, Embedder | None]:
    """The specification, the stage to write for, and the last encoder before it.

    Raises:
        IngestError: one is missing, or it is not clear which stage is meant.
    """
    if pipeline.collection is None:
        raise IngestError(
            (f"{pipeline.name} has no `collection:` section, which says what fields and index the collection gets"),
            "add one",
        )
    stores = [position for position, stage in enumerate(pipeline.stages) if isinstance(stage, CollectionStore)]
    if len(stores) != 1:
        names = ", ".join(pipeline.stages[position].name for position in stores)
        raise IngestError(
            f"{pipeline.name} has {len(stores) or 'no'} stages whose collection could be made"
            + (f" ({names}); ingest with a configuration that has one" if stores else "; add a milvus_search stage")
        )
    before = pipeline.stages[: stores[0]]
    embedders: list[Embedder] = [stage for stage in before if isinstance(stage, Embedder)]
    store = pipeline.stages[stores[0]]
    assert isinstance(store, CollectionStore)  # noqa: S101 - for type checkers
    return pipeline.collection, store, embedders[-1] if embedders else None
