"""What the rerankers that run a transformer in this process have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from milvus_pipeline import Context, Deadline, Reranker, RerankJob
from milvus_stages._models import Kind, LocalModel
from milvus_stages._tokens import Ids, Row, Tokens, batches

if TYPE_CHECKING:
    import torch


class LocalReranker(LocalModel, Reranker):
    """A reranker on a local transformer. Write ``score_batch``."""

    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """The relevance of each text to the query; see ``score_batch``."""
        return self.scored_alone(query, texts, Deadline())

    @abstractmethod
    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Sequence[Iterable[float | None]]:
        """Score several queries at once."""


class _Pair(NamedTuple):
    """One text to score: number of its job, place among the job's texts, and the token ids that the model shall see."""

    job: int
    place: int
    query: Ids
    text: Ids


class PairReranker(LocalReranker):
    """A reranker that reads query and document together and gives the pair one number.

    The pairs of all queries share forward passes. Query and document are tokenized once each, however many pairs
    they are part of.
    """

    kind: ClassVar[Kind] = "classifier"

    def query_tokens(self, queries: Sequence[str]) -> list[Tokens]:
        """The tokens of the queries; more of them than fit beside a document is fine."""
        # The model never sees more of a text than its limit, so the rest need not be kept.
        return self.loaded.tokenizer.tokens(queries, self.loaded.limit)

    def text_tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of the documents; more of them than fit beside a query is fine."""
        return self.loaded.tokenizer.tokens(texts, self.loaded.limit)

    @abstractmethod
    def room(self, query: Tokens, text: Tokens) -> tuple[int, int]:
        """How many of its first tokens each side of a pair keeps, special tokens not counted."""

    def row(self, query: Ids, text: Ids) -> Row:
        """The model's input for a pair."""
        return self.loaded.tokenizer.pair_row(query, text)

    @abstractmethod
    def relevance(self, logits: torch.Tensor) -> list[float]:
        """A number for each row of ``logits`` ``(pairs, labels)``, which are 32 bit."""

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float]]:
        """Score the pairs of all queries, in batches of pairs of similar length."""
        pairs = self._pairs(jobs, context)
        scores = [[0.0] * len(job.texts) for job in jobs]
        for batch in batches([len(pair.query) + len(pair.text) for pair in pairs], self.batch_size):
            context.deadline.check()
            chosen = [pairs[position] for position in batch]
            output, _ = self.loaded.forward([self.row(pair.query, pair.text) for pair in chosen])
            for pair, score in zip(chosen, self.relevance(output.logits.float()), strict=True):
                scores[pair.job][pair.place] = score
        return scores

    def _pairs(self, jobs: Sequence[RerankJob], context: Context) -> list[_Pair]:
        texts = list(dict.fromkeys(text for job in jobs for text in job.texts))
        tokens = dict(zip(texts, self.text_tokens(texts), strict=True))
        queries = self.query_tokens([job.query for job in jobs])
        pairs = []
        for number, (job, query) in enumerate(zip(jobs, queries, strict=True)):
            query_cut, texts_cut = False, []
            for place, text in enumerate(job.texts):
                kept, text_kept = self.room(query, tokens[text])
                # Documents that are not cut are not copied: their list is shared by the pairs of all queries.
                ids = tokens[text].ids
                pairs.append(_Pair(number, place, query.ids[:kept], ids if len(ids) <= text_kept else ids[:text_kept]))
                query_cut |= kept < query.length
                texts_cut.append(text_kept < tokens[text].length)
            warn_of_cuts(query_cut, texts_cut, context, number)
        return pairs


def warn_of_cuts(query: bool, texts: Sequence[bool], context: Context, position: int) -> None:
    """Say in a query's report whether it was too long, and how many of its documents were."""
    if query:
        context.warn("the query is longer than the model may see; its end was left out", position)
    if count := sum(texts):
        context.warn(
            f"{count} of {len(texts)} documents are longer than the model may see; their ends were left out", position
        )
        context.note(position, documents_cut=count)
