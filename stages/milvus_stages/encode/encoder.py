"""The stage that turns query texts into vectors with a local transformer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, TypeAlias

from pydantic import Field, PrivateAttr

from milvus_pipeline import QueryError, SearchResult
from milvus_pipeline.plugin import Context, Deadline, adrive, drive
from milvus_stages.local.anytime import Clock, Work, arun_in_time, late_error, run_in_time, run_texts_best_first
from milvus_stages.local.files import field_error, read_object
from milvus_stages.local.head import Head, read_head
from milvus_stages.local.models import Kind, LoadedModel, LocalModel, ModelName, max_length_of
from milvus_stages.local.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class _Prepared(NamedTuple):
    """What follows from the model's files and the stage's fields."""

    head: Head
    max_length: int
    query_prompt: str
    document_prompt: str
    dim: int


_Vectors: TypeAlias = "dict[int, tuple[npt.NDArray[np.float32], bool]]"
"""The vector of each text that is done, by its number, and whether the text was cut."""


class Encode(LocalModel):
    """Gives each query its embedding, as sentence-transformers does with the same files.

    Pooling, normalization, prompts and the maximum length are those that the model's files name. A query that has a
    vector keeps it.
    """

    type: ClassVar[str] = "encode"
    kind: ClassVar[Kind] = "encoder"
    needs: ClassVar[frozenset[str]] = frozenset({"query_text"})
    gives: ClassVar[frozenset[str]] = frozenset({"vector"})

    model: ModelName = "sentence-transformers/all-MiniLM-L6-v2"
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
        prompts = read_object(loaded.folder / "config_sentence_transformers.json").get("prompts")
        query = _prompt(self.query_prompt, prompts, "query")
        document = _prompt(self.document_prompt, prompts, "document", "passage", "corpus")
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
        return self._ready.dim

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of documents, for filling a collection.

        Args:
            texts: any number of them; an empty one gets the vector of its special tokens.

        Returns:
            ``(len(texts), dim)``, C-contiguous.

        Raises:
            StageError: the stage is not open.
        """
        import numpy as np

        vectors: _Vectors = {}
        self._encode(vectors, texts, self._ready.document_prompt, Clock(Context(Deadline(), 0)))
        found = [vectors[number][0] for number in range(len(texts))]
        return np.array(found, dtype=np.float32).reshape(len(texts), self.dim)

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Encode the queries that have no vector. Those that are not reached in time fail alone."""
        return drive(self._encoding(results, context), lambda work: run_in_time(work, context))

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` in a thread, for an event loop."""
        executor = self.loaded.threads.executor()
        return await adrive(self._encoding(results, context), lambda work: arun_in_time(work, context, executor))

    def _encoding(
        self, results: Sequence[SearchResult], context: Context
    ) -> Generator[Work, None, Sequence[SearchResult]]:
        """Yield the work on the queries; return the results, with the vectors that are there when the time is up."""
        prepared = self._ready
        positions = []
        for position, result in enumerate(results):
            if result.query.vector is None and result.query.text.strip():
                positions.append(position)
            elif result.query.vector is None:
                context.fail(position, QueryError("the query has neither text nor vector", "set one of them"))
        texts = [results[position].query.text for position in positions]
        vectors: _Vectors = {}
        yield lambda clock: self._encode(vectors, texts, prepared.query_prompt, clock)
        encoded = list(results)
        for number, position in enumerate(positions):
            if number not in vectors:
                context.fail(position, late_error("the query was not encoded", context.deadline))
                continue
            vector, cut = vectors[number]
            encoded[position] = results[position].with_query(results[position].query.with_vector(vector))
            if cut:
                context.warn(f"the query is longer than {prepared.max_length} tokens; its end was left out", position)
        return encoded

    @property
    def _ready(self) -> _Prepared:
        assert self.loaded and self._prepared  # noqa: S101 - the setup that sets `loaded` sets both
        return self._prepared

    def _encode(self, vectors: _Vectors, texts: Sequence[str], prompt: str, clock: Clock) -> None:
        """Add the vectors of the texts, the first texts first.

        Raises:
            DeadlineError: the time is up. What was written by then counts.
        """
        loaded, prepared = self.loaded, self._ready

        def encode(batch: Mapping[int, Tokens]) -> None:
            rows = [loaded.tokenizer.row(tokens.ids) for tokens in batch.values()]
            output, mask = loaded.forward(rows, clock)
            values = prepared.head(output.last_hidden_state, mask).cpu().numpy()
            vectors.update({own: (value, batch[own].cut) for own, value in zip(batch, values, strict=True)})

        limit = prepared.max_length - loaded.tokenizer.specials
        prompted = [prompt + text for text in texts]
        run_texts_best_first(loaded.tokenizer, prompted, limit, encode, self.batch_size, clock)


def _prompt(given: str | None, saved: Any, *names: str) -> str:
    """The prompt of the stage's field, or the first of these names that the model's files have."""
    if given is not None:
        return given
    return next((saved[name] for name in names if saved.get(name)), "") if isinstance(saved, dict) else ""
