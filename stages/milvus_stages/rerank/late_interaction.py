"""Late interaction: the token vectors of query and document, compared one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field, PrivateAttr

from milvus_pipeline import DeadlineError, QueryError, StageError
from milvus_pipeline.plugin import RerankJob
from milvus_stages.local.anytime import Clock, TextWork, in_words, work_off
from milvus_stages.local.files import module_list
from milvus_stages.local.models import Kind, LoadedModel, max_length_of
from milvus_stages.local.pair_reranker import LocalReranker, Scores, by_rank, warn_of_cuts

if TYPE_CHECKING:
    import torch

NO_TOKENS = -1.0
"""Score of a document without tokens: the floor of a cosine, and so of every score."""


class _Lengths(NamedTuple):
    """Own tokens that a query and a document may have, without special tokens."""

    query: int
    text: int


class LateInteraction(LocalReranker):
    """Scores by MaxSim over the token vectors of an encoder; -1 to 1.

    For every token of the query the most similar token of the document is found, by cosine; the score is the mean
    of these over the query's tokens. MaxSim is ColBERT's (Khattab and Zaharia, 2020, https://arxiv.org/abs/2004.12832,
    section 3.3), which takes the sum; the mean orders the documents of a query alike and does not grow with the query.
    Special tokens take part in the encoding but not in the comparison. A document without tokens gets -1.
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
        """Settle how long texts may be."""
        for kind, _ in (module_list(loaded.folder) or [])[1:]:
            # Pooling and what follows it make one vector of a text; anything else would change the tokens' vectors.
            if kind == "Pooling":
                break
            raise StageError(f"{self.model!r} has a module {kind!r} after the transformer: not supported")
        specials = loaded.tokenizer.specials
        self._lengths = _Lengths(
            max_length_of(loaded, self.query_max_length, specials, field="query_max_length") - specials,
            max_length_of(loaded, self.max_length, specials) - specials,
        )

    def document_room(self, query: int) -> int:
        """As many beside any query."""
        return self._lengths.text

    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Encode queries and distinct documents once each, and compare a document as soon as it is encoded."""
        import torch

        queries = self._encoded_queries(jobs, clock)
        texts = list(dict.fromkeys(by_rank([jobs[number].texts for number in queries])))
        places = _places(jobs, texts, queries.keys())

        def compare(numbers: Sequence[int]) -> None:
            vectors = self._encoded(documents, numbers, clock)
            found = [maxsim([queries[number] for number, _ in places[text]], own) for text, own in vectors.items()]
            values = iter(torch.cat(found).tolist() if found else ())
            for text in numbers:  # those without tokens have no vectors
                for number, place in places[text]:
                    scores[number][place] = next(values) if text in vectors else NO_TOKENS

        documents = TextWork(self.loaded.tokenizer, texts, self._lengths.text, clock, compare)
        try:
            work_off(documents, self.batch_size, clock)
        finally:
            cut = Counter(
                number
                for text, own in documents.tokens.items()
                if own.cut
                for number, place in places[text]
                if scores[number][place] is not None
            )
            for number in queries:
                warn_of_cuts(False, cut[number], len(jobs[number].texts), clock.context, number)

    def _encoded_queries(self, jobs: Sequence[RerankJob], clock: Clock) -> dict[int, torch.Tensor]:
        """The vectors of each query by its number. They may take half of the time, and the documents the rest.

        Raises:
            DeadlineError: all of it is used up.
        """
        vectors: dict[int, torch.Tensor] = {}
        half = clock.half()

        def encode(numbers: Sequence[int]) -> None:
            vectors.update(self._encoded(work, numbers, half))

        work = TextWork(self.loaded.tokenizer, [job.query for job in jobs], self._lengths.query, half, encode)
        try:
            work_off(work, self.batch_size, half)
        except DeadlineError:
            clock.check()
        for number in range(len(jobs)):
            tokens = work.tokens.get(number)
            if tokens is not None:
                warn_of_cuts(tokens.cut, 0, 0, clock.context, number)
            if tokens is not None and not tokens.ids:
                lack = "the query has no token that the model knows; ask in words"
                clock.context.fail(number, QueryError(lack))
            elif number not in vectors:
                lack = f"the query was not encoded {in_words(clock.context.deadline)}; raise `timeout` or ask for less"
                clock.context.fail(number, DeadlineError(lack))
        return vectors

    def _encoded(self, work: TextWork, numbers: Sequence[int], clock: Clock) -> dict[int, torch.Tensor]:
        """Unit vectors ``(tokens, hidden)`` of the texts' own tokens; texts without are left out."""
        import torch

        texts = {number: work.tokens[number].ids for number in numbers if work.tokens[number].ids}
        if not texts:
            return {}
        tokenizer = self.loaded.tokenizer
        output, _ = self.loaded.forward([tokenizer.row(ids) for ids in texts.values()], clock)
        hidden = torch.nn.functional.normalize(output.last_hidden_state.float(), dim=-1)
        start = tokenizer.text_start
        return {number: own[start : start + len(ids)] for (number, ids), own in zip(texts.items(), hidden, strict=True)}


def maxsim(queries: Sequence[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The score of one document for several queries.

    Args:
        queries: unit vectors ``(tokens, hidden)`` of each query; may be no query at all.
        tokens: unit vectors ``(tokens, hidden)`` of the document.

    Returns:
        ``(len(queries),)``: the mean over a query's tokens of each one's largest cosine.
    """
    import torch

    if not queries:
        return tokens.new_empty(0)
    best = (torch.cat(list(queries)) @ tokens.T).amax(dim=1)
    return torch.stack([part.mean() for part in torch.split(best, [len(query) for query in queries])])


def _places(jobs: Sequence[RerankJob], texts: Sequence[str], numbers: Container[int]) -> list[list[tuple[int, int]]]:
    """For every text, where its scores belong: number of the job (of ``numbers`` only) and place among its texts."""
    index = {text: position for position, text in enumerate(texts)}
    places: list[list[tuple[int, int]]] = [[] for _ in texts]
    for number, job in enumerate(jobs):
        if number in numbers:
            for place, text in enumerate(job.texts):
                places[index[text]].append((number, place))
    return places
