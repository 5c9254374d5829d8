"""The stage that turns query texts into vectors with a local transformer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field, PrivateAttr

from milvus_pipeline import QueryError, SearchResult
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages.local.anytime import Clock, arun_in_time, late_error, run_in_time, run_texts_best_first
from milvus_stages.local.files import field_error, read_object
from milvus_stages.local.head import Head, read_head
from milvus_stages.local.models import Kind, LoadedModel, LocalModel, max_length_of
from milvus_stages.local.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)


class _Prepared(NamedTuple):
    """What follows from the model's files and the stage's fields."""

    head: Head
    max_length: int
    query_prompt: str
    document_prompt: str
    dim: int


class _Vectors(NamedTuple):
    """Vectors ``(texts, dim)``, and the numbers of the texts that are done and of those that were cut."""

    values: npt.NDArray[np.float32]
    done: set[int]
    cut: set[int]


class Encode(LocalModel):
    """Gives each query its embedding, as sentence-transformers does with the same files.

    Pooling, normalization, prompts and the maximum length are those that the model's files name. A query that has a
    vector keeps it.
    """

    type: ClassVar[str] = "encode"
    kind: ClassVar[Kind] = "encoder"
    needs: ClassVar[frozenset[str]] = frozenset({"query_text"})
    gives: ClassVar[frozenset[str]] = frozenset({"vector"})

    model: Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH.")] = (
        "sentence-transformers/all-MiniLM-L6-v2"
    )
    max_length: Annotated[
        int | None, Field(ge=1, description="Tokens of a text, with special tokens; the model's by default.")
    ] = None
    normalize: Annotated[
        bool | None, Field(description="Give vectors unit length; as the model's files say by default.")
    ] = None
    query_prompt: Annotated[str | None, Field(description="Put before a query; the model's own by default.")] = None
    document_prompt: Annotated[str | None, Field(description="Put before a document; the model's own by default.")] = (
        None
    )

    _prepared: _Prepared | None = PrivateAttr(default=None)

    def prepare(self, loaded: LoadedModel) -> None:
        """Read pooling, limits and prompts from the model's files."""
        head = read_head(loaded.folder, loaded.device, self.normalize)
        if not head.known:
            logger.warning("%s: the model has no modules.json; using the mean of the token vectors", self.name)
        prompts = _prompts(loaded)
        query = _first(self.query_prompt, prompts.get("query"))
        document = _first(self.document_prompt, *(prompts.get(name) for name in ("document", "passage", "corpus")))
        if (query or document) and not head.pools_prompt:
            leaves_out = "leaves prompts out of its pooling, which is not supported"
            raise field_error("model", f"{self.model!r} {leaves_out}", "set `query_prompt` and `document_prompt` to ''")
        max_length = max_length_of(loaded, self.max_length, loaded.tokenizer.specials)
        row = loaded.tokenizer.row(loaded.tokenizer.tokens(["a"], 1)[0].ids)
        output, mask = loaded.forward([row], Clock(Context(Deadline(), 0)))
        dim = head(output.last_hidden_state, mask).shape[-1]
        self._prepared = _Prepared(head, max_length, query, document, dim)

    @property
    def dim(self) -> int:
        """Number of components of a vector. Raises StageError if the stage is not open."""
        return self._ready()[1].dim

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of documents, for filling a collection.

        Args:
            texts: any number of them; an empty one gets the vector of its special tokens.

        Returns:
            ``(len(texts), dim)``, C-contiguous.

        Raises:
            StageError: the stage is not open.
        """
        vectors = self._empty_vectors(texts)
        self._encode(vectors, texts, self._ready()[1].document_prompt, Clock(Context(Deadline(), 0)))
        return vectors.values

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Encode the queries that have no vector. Those that are not reached in time fail alone."""
        positions, texts = self._to_encode(results, context)
        vectors = self._empty_vectors(texts)
        run_in_time(partial(self._encode, vectors, texts, self._ready()[1].query_prompt), context)
        return self._with_vectors(results, positions, vectors, context)

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` in a thread, for an event loop."""
        positions, texts = self._to_encode(results, context)
        vectors = self._empty_vectors(texts)
        work = partial(self._encode, vectors, texts, self._ready()[1].query_prompt)
        await arun_in_time(work, context, self.loaded.executor)
        return self._with_vectors(results, positions, vectors, context)

    def _to_encode(self, results: Sequence[SearchResult], context: Context) -> tuple[list[int], list[str]]:
        """Positions and texts of the queries that have no vector."""
        positions = []
        for position, result in enumerate(results):
            if result.query.vector is not None:
                continue
            if result.query.text.strip():
                positions.append(position)
            else:
                context.fail(position, QueryError("the query has neither text nor vector", "set one of them"))
        return positions, [results[position].query.text for position in positions]

    def _with_vectors(
        self, results: Sequence[SearchResult], positions: Sequence[int], vectors: _Vectors, context: Context
    ) -> list[SearchResult]:
        """The results, with the vectors that are done at their positions."""
        encoded = list(results)
        for number, position in enumerate(positions):
            if number not in vectors.done:
                context.fail(position, late_error("the query was not encoded", context.deadline))
                continue
            query = results[position].query
            encoded[position] = results[position].with_query(query.with_vector(vectors.values[number]))
            if number in vectors.cut:
                limit = self._ready()[1].max_length
                context.warn(f"the query is longer than {limit} tokens; its end was left out", position)
        return encoded

    def _ready(self) -> tuple[LoadedModel, _Prepared]:
        loaded = self.loaded
        assert self._prepared is not None  # noqa: S101 - the setup that sets `loaded` sets it
        return loaded, self._prepared

    def _empty_vectors(self, texts: Sequence[str]) -> _Vectors:
        import numpy as np

        return _Vectors(np.empty((len(texts), self.dim), dtype=np.float32), set(), set())

    def _encode(self, vectors: _Vectors, texts: Sequence[str], prompt: str, clock: Clock) -> None:
        """Write the vectors of the texts to their places, the first texts first.

        Raises:
            DeadlineError: the time is up. What was written by then counts.
        """
        loaded, prepared = self._ready()

        def encode(batch: Mapping[int, Tokens]) -> None:
            rows = [loaded.tokenizer.row(tokens.ids) for tokens in batch.values()]
            output, mask = loaded.forward(rows, clock)
            vectors.values[list(batch)] = prepared.head(output.last_hidden_state, mask).cpu().numpy()
            vectors.cut.update(number for number, tokens in batch.items() if tokens.cut)
            vectors.done.update(batch)

        limit = prepared.max_length - loaded.tokenizer.specials
        prompted = [prompt + text for text in texts]
        run_texts_best_first(loaded.tokenizer, prompted, limit, encode, self.batch_size, clock)


def _prompts(loaded: LoadedModel) -> dict[str, str]:
    prompts = read_object(loaded.folder / "config_sentence_transformers.json").get("prompts")
    return {name: text for name, text in prompts.items() if text} if isinstance(prompts, dict) else {}


def _first(*texts: str | None) -> str:
    """The first that is not None, or an empty text."""
    return next((text for text in texts if text is not None), "")
