"""Late interaction: the token vectors of query and document, compared one by one."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field, PrivateAttr

from milvus_pipeline import DeadlineError, QueryError
from milvus_pipeline.plugin import RerankJob
from milvus_stages.local.anytime import Clock, late_error, run_texts_best_first
from milvus_stages.local.files import model_error, module_list
from milvus_stages.local.models import Kind, LoadedModel, max_length_of
from milvus_stages.local.pair_reranker import LocalReranker, Scores, by_rank, warn_of_cuts
from milvus_stages.local.tokens import Tokens

if TYPE_CHECKING:
    import torch

NO_TOKENS = -1.0
"""Score of a document without tokens: the lowest cosine, and so the lowest score."""


class _Lengths(NamedTuple):
    """Tokens that a query and a document may have, special tokens not counted."""

    query: int
    text: int


class LateInteraction(LocalReranker):
    """Scores by MaxSim over the token vectors of an encoder, from -1 to 1.

    For each token of the query, the largest cosine with a token of the document counts; the score is the mean over the
    query's tokens. ColBERT's MaxSim (Khattab and Zaharia, 2020, https://arxiv.org/abs/2004.12832, section 3.3) takes
    the sum; the mean orders the documents of a query in the same way and does not grow with the query's length.
    Special tokens are encoded but not compared. A document without tokens gets -1.
    """

    type: ClassVar[str] = "late_interaction"
    kind: ClassVar[Kind] = "encoder"

    model: Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH of an encoder.")] = (
        "sentence-transformers/all-MiniLM-L6-v2"
    )
    max_length: Annotated[
        int | None, Field(ge=1, description="Tokens of a document, with special tokens; the model's by default.")
    ] = None
    query_max_length: Annotated[
        int | None, Field(ge=1, description="Tokens of a query, with special tokens; the model's by default.")
    ] = None

    _lengths: _Lengths = PrivateAttr(default=_Lengths(0, 0))

    def prepare(self, loaded: LoadedModel) -> None:
        """Determine how long texts may be."""
        for kind, _ in (module_list(loaded.folder) or [])[1:]:
            # Pooling and later modules turn a text into one vector; any other module would change the token vectors.
            if kind == "Pooling":
                break
            raise model_error(f"{self.model!r} has a module {kind!r} after the transformer, which is not supported")
        specials = loaded.tokenizer.specials
        self._lengths = _Lengths(
            max_length_of(loaded, self.query_max_length, specials, field="query_max_length") - specials,
            max_length_of(loaded, self.max_length, specials) - specials,
        )

    def document_room(self, query: int) -> int:
        """Return the tokens of a document that are read, which do not depend on the query."""
        return self._lengths.text

    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Encode each query and each distinct document once, and compare a document as soon as it is encoded."""
        import torch

        queries = self._encode_queries(jobs, clock)
        texts = list(dict.fromkeys(by_rank([jobs[number].texts for number in queries])))
        places = _places(jobs, texts, queries.keys())
        cut = [0] * len(jobs)

        def compare(batch: Mapping[int, Tokens]) -> None:
            vectors = self._vectors(batch, clock)
            found = [maxsim([queries[number] for number, _ in places[text]], own) for text, own in vectors.items()]
            values = iter(torch.cat(found).tolist() if found else ())
            for text, tokens in batch.items():  # a text without tokens has no vectors
                for number, place in places[text]:
                    scores[number][place] = next(values) if text in vectors else NO_TOKENS
                    cut[number] += tokens.cut

        try:
            run_texts_best_first(self.loaded.tokenizer, texts, self._lengths.text, compare, self.batch_size, clock)
        finally:
            for number in queries:
                warn_of_cuts(False, cut[number], len(jobs[number].texts), clock.context, number)

    def _encode_queries(self, jobs: Sequence[RerankJob], clock: Clock) -> dict[int, torch.Tensor]:
        """The vectors of each query by its number. Queries may take half of the time; the rest is for the documents.

        Raises:
            DeadlineError: all of the time is used up.
        """
        vectors: dict[int, torch.Tensor] = {}
        context, left = clock.context, clock.deadline.remaining()
        half = Clock(context, clock.deadline.sooner(None if left is None else left / 2))

        def encode(batch: Mapping[int, Tokens]) -> None:
            vectors.update(self._vectors(batch, half))
            for number, tokens in batch.items():
                warn_of_cuts(tokens.cut, 0, 0, context, number)
                if not tokens.ids:
                    context.fail(number, QueryError("the query has no token that the model knows", "rephrase it"))

        queries = [job.query for job in jobs]
        try:
            run_texts_best_first(self.loaded.tokenizer, queries, self._lengths.query, encode, self.batch_size, half)
        except DeadlineError:
            clock.check()
        for number in range(len(jobs)):
            if number not in vectors:  # the first failure of a query counts
                context.fail(number, late_error("the query was not encoded", context.deadline))
        return vectors

    def _vectors(self, batch: Mapping[int, Tokens], clock: Clock) -> dict[int, torch.Tensor]:
        """Unit vectors ``(tokens, hidden)`` of the texts' own tokens by number; texts without tokens are left out."""
        import torch

        texts = {number: tokens.ids for number, tokens in batch.items() if tokens.ids}
        if not texts:
            return {}
        tokenizer = self.loaded.tokenizer
        output, _ = self.loaded.forward([tokenizer.row(ids) for ids in texts.values()], clock)
        hidden = torch.nn.functional.normalize(output.last_hidden_state.float(), dim=-1)
        start = tokenizer.text_start
        return {number: own[start : start + len(ids)] for (number, ids), own in zip(texts.items(), hidden, strict=True)}


def maxsim(queries: Sequence[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Return the scores of one document for several queries.

    Args:
        queries: unit vectors ``(tokens, hidden)`` of each query; may be empty.
        tokens: unit vectors ``(tokens, hidden)`` of the document.

    Returns:
        ``(len(queries),)``: the mean over a query's tokens of the largest cosine of each.
    """
    import torch

    if not queries:
        return tokens.new_empty(0)
    best = (torch.cat(list(queries)) @ tokens.T).amax(dim=1)
    return torch.stack([part.mean() for part in torch.split(best, [len(query) for query in queries])])


def _places(jobs: Sequence[RerankJob], texts: Sequence[str], numbers: Container[int]) -> list[list[tuple[int, int]]]:
    """For each text, where its scores belong: the number of a job (one of ``numbers``) and the place in its texts."""
    index = {text: position for position, text in enumerate(texts)}
    places: list[list[tuple[int, int]]] = [[] for _ in texts]
    for number, job in enumerate(jobs):
        if number in numbers:
            for place, text in enumerate(job.texts):
                places[index[text]].append((number, place))
    return places
