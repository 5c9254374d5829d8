"""Query text to vector, with a local transformer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field, PrivateAttr

from milvus_pipeline import DeadlineError, QueryError, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages.local.anytime import Clock, TextWork, ending_in_time, in_words, until_time_is_up, work_off
from milvus_stages.local.files import read_object
from milvus_stages.local.head import Head, read_head
from milvus_stages.local.models import Kind, LoadedModel, LocalModel, max_length_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)


class _Prepared(NamedTuple):
    """What the model's files and the stage's fields come to."""

    head: Head
    max_length: int
    query_prompt: str
    document_prompt: str
    dim: int


class _Vectors(NamedTuple):
    """The vectors ``(texts, dim)``, the numbers of the texts that have theirs, and of those that were too long."""

    values: npt.NDArray[np.float32]
    done: set[int]
    cut: set[int]


class Encode(LocalModel):
    """Gives every query its embedding, as sentence-transformers does with the same files.

    Pooling, normalisation, prompts and the longest input are those that the model's own files name. A query that
    brings a vector keeps it.
    """

    type: ClassVar[str] = "encode"
    kind: ClassVar[Kind] = "encoder"
    needs: ClassVar[frozenset[str]] = frozenset({"query_text"})
    gives: ClassVar[frozenset[str]] = frozenset({"vector"})

    model: Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH.")] = (
        "sentence-transformers/all-MiniLM-L6-v2"
    )
    max_length: Annotated[
        int | None, Field(ge=1, description="Tokens a text may have, special tokens included; the model's by default.")
    ] = None
    normalize: Annotated[
        bool | None, Field(description="Vectors of unit length; as the model's files say by default.")
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
            logger.warning("%s: the model has no modules.json; its vectors are the mean of the tokens'", self.name)
        prompts = _prompts(loaded)
        query = _first(self.query_prompt, prompts.get("query"))
        document = _first(self.document_prompt, *(prompts.get(name) for name in ("document", "passage", "corpus")))
        if (query or document) and not head.pools_prompt:
            raise StageError(
                "the model leaves prompts out of its pooling, which is not supported",
                "set the prompts to ''",
                reason_code="config",
            )
        max_length = max_length_of(loaded, self.max_length, loaded.tokenizer.specials)
        row = loaded.tokenizer.row(loaded.tokenizer.tokens(["a"], 1)[0].ids)
        output, mask = loaded.forward([row], Clock(Context(Deadline(), 0)))
        dim = head(output.last_hidden_state, mask).shape[-1]
        self._prepared = _Prepared(head, max_length, query, document, dim)

    @property
    def dim(self) -> int:
        """Number of components of a vector. StageError where the stage is not open."""
        return self._ready()[1].dim

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors of documents, as a collection is filled with them.

        Args:
            texts: any number of them; an empty one gets the vector of no words.

        Returns:
            ``(len(texts), dim)``, C-contiguous.

        Raises:
            StageError: the stage is not open.
        """
        vectors = self._room_for(texts)
        self._encode(vectors, texts, self._ready()[1].document_prompt, Clock(Context(Deadline(), 0)))
        return vectors.values

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Give the queries without vector theirs. Those that are not reached in time fail alone."""
        positions, texts = self._bare(results, context)
        vectors = self._room_for(texts)
        with ending_in_time(context):
            self._encode(vectors, texts, self._ready()[1].query_prompt, Clock(context))
        return self._with_vectors(results, positions, vectors, context)

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` in a thread, for an event loop, which goes on with what is encoded when the time is up."""
        positions, texts = self._bare(results, context)
        vectors, prompt = self._room_for(texts), self._ready()[1].query_prompt
        with ending_in_time(context):
            await until_time_is_up(lambda clock: self._encode(vectors, texts, prompt, clock), context)
        return self._with_vectors(results, positions, vectors, context)

    def _bare(self, results: Sequence[SearchResult], context: Context) -> tuple[list[int], list[str]]:
        """Positions and texts of the queries that have no vector."""
        positions = []
        for position, result in enumerate(results):
            if result.query.vector is not None:
                continue
            if result.query.text.strip():
                positions.append(position)
            else:
                context.fail(position, QueryError("the query has neither text nor vector", "give it one of them"))
        return positions, [results[position].query.text for position in positions]

    def _with_vectors(
        self, results: Sequence[SearchResult], positions: Sequence[int], vectors: _Vectors, context: Context
    ) -> list[SearchResult]:
        """The results, those at the positions with the vectors that there are."""
        encoded = list(results)
        for number, position in enumerate(positions):
            if number not in vectors.done:
                lack = f"the query was not encoded {in_words(context.deadline)}; raise `timeout` or ask for less"
                context.fail(position, DeadlineError(lack))
                continue
            query = results[position].query
            encoded[position] = results[position].with_query(query.with_vector(vectors.values[number]))
            if number in vectors.cut:
                most = self._ready()[1].max_length
                context.warn(f"the query is longer than {most} tokens; its end was left out", position)
        return encoded

    def _ready(self) -> tuple[LoadedModel, _Prepared]:
        loaded = self.loaded
        assert self._prepared is not None  # noqa: S101 - set by the same setup that has set `loaded`
        return loaded, self._prepared

    def _room_for(self, texts: Sequence[str]) -> _Vectors:
        import numpy as np

        return _Vectors(np.empty((len(texts), self.dim), dtype=np.float32), set(), set())

    def _encode(self, vectors: _Vectors, texts: Sequence[str], prompt: str, clock: Clock) -> None:
        """Put the vectors of the texts in their places, the first texts first.

        Raises:
            DeadlineError: the time is up. What is in its place by then counts.
        """
        loaded, prepared = self._ready()

        def encode(numbers: Sequence[int]) -> None:
            rows = [loaded.tokenizer.row(work.tokens[number].ids) for number in numbers]
            output, mask = loaded.forward(rows, clock)
            vectors.values[numbers] = prepared.head(output.last_hidden_state, mask).cpu().numpy()
            vectors.cut.update(number for number in numbers if work.tokens[number].cut)
            vectors.done.update(numbers)

        room = prepared.max_length - loaded.tokenizer.specials
        work = TextWork(loaded.tokenizer, [prompt + text for text in texts], room, clock, encode)
        work_off(work, self.batch_size, clock)


def _prompts(loaded: LoadedModel) -> dict[str, str]:
    prompts = read_object(loaded.folder / "config_sentence_transformers.json").get("prompts")
    return {name: text for name, text in prompts.items() if text} if isinstance(prompts, dict) else {}


def _first(*texts: str | None) -> str:
    """The first that is given; empty where none is."""
    return next((text for text in texts if text is not None), "")
