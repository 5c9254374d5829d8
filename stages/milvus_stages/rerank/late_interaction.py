"""Late interaction: the token vectors of query and document, compared one by one."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field, PrivateAttr

from milvus_pipeline import Context, Deadline, QueryError, RerankJob, StageError
from milvus_stages._layout import module_list
from milvus_stages._models import Kind, LoadedModel, max_length_of
from milvus_stages._tokens import Tokens, batches
from milvus_stages.rerank._torch import LocalReranker, warn_of_cuts

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

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float]]:
        """Encode queries and distinct documents once each, and compare a document as soon as it is encoded."""
        import torch

        tokenizer = self.loaded.tokenizer
        query_tokens = tokenizer.tokens([job.query for job in jobs], self._lengths.query)
        texts = list(dict.fromkeys(text for job in jobs for text in job.texts))
        text_tokens = tokenizer.tokens(texts, self._lengths.text)
        self._report(jobs, query_tokens, dict(zip(texts, text_tokens, strict=True)), context)

        query_batches = self._encoded(query_tokens, context.deadline)
        queries = {number: vectors for batch in query_batches for number, vectors in batch}
        places = _places(jobs, texts, queries.keys())
        scores = [[NO_TOKENS] * len(job.texts) for job in jobs]
        for batch in self._encoded(text_tokens, context.deadline):
            wanted = [place for text, _ in batch for place in places[text]]
            found = [maxsim([queries[number] for number, _ in places[text]], tokens) for text, tokens in batch]
            for (number, place), score in zip(wanted, torch.cat(found).tolist(), strict=True):
                scores[number][place] = score
        return scores

    def _encoded(self, texts: Sequence[Tokens], deadline: Deadline) -> Iterator[list[tuple[int, torch.Tensor]]]:
        """Unit vectors ``(tokens, hidden)`` of each text's own tokens with its position; texts without are left out."""
        import torch

        start = self.loaded.tokenizer.text_start
        present = [position for position, own in enumerate(texts) if own.ids]
        for batch in batches([len(texts[position].ids) for position in present], self.batch_size):
            deadline.check()
            positions = [present[index] for index in batch]
            output, _ = self.loaded.forward([self.loaded.tokenizer.row(texts[position].ids) for position in positions])
            hidden = torch.nn.functional.normalize(output.last_hidden_state.float(), dim=-1)
            yield [
                (position, own[start : start + len(texts[position].ids)])
                for position, own in zip(positions, hidden, strict=True)
            ]

    def _report(
        self, jobs: Sequence[RerankJob], queries: Sequence[Tokens], texts: Mapping[str, Tokens], context: Context
    ) -> None:
        for number, (job, query) in enumerate(zip(jobs, queries, strict=True)):
            if not query.ids:
                context.fail(number, QueryError("the query has no token that the model knows; ask in words"))
            warn_of_cuts(query.cut, [texts[text].cut for text in job.texts], context, number)


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
