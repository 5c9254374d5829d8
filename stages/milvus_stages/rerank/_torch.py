"""What the rerankers that run a transformer in this process have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from milvus_pipeline import Context, Deadline, Reranker, RerankJob
from milvus_stages._models import Kind, LocalModel
from milvus_stages._tokens import Ids, Row, batches

if TYPE_CHECKING:
    import torch


class LocalReranker(LocalModel, Reranker):
    """A reranker on a local transformer. Write ``score_batch``."""

    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """The relevance of each text to the query; see ``score_batch``."""
        context = Context(Deadline(), 1)
        scores = self.score_batch([RerankJob(query, texts)], context)
        for error in context.failures.values():
            raise error
        return scores[0]

    @abstractmethod
    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Sequence[Iterable[float | None]]:
        """Score several queries at once."""


class _Pair(NamedTuple):
    """One text to score: number of its job, place among the job's texts, and the tokens that the model shall see."""

    job: int
    place: int
    query_tokens: int
    text_tokens: int


class PairReranker(LocalReranker):
    """A reranker that reads query and document together and gives the pair one number.

    The pairs of all queries share forward passes. Query and document are tokenized once each, however many pairs
    they are part of.
    """

    kind: ClassVar[Kind] = "classifier"

    @abstractmethod
    def room(self, query: int, text: int) -> tuple[int, int]:
        """How many of its first tokens each side keeps, given how many it has, special tokens not counted."""

    @abstractmethod
    def relevance(self, logits: torch.Tensor) -> list[float]:
        """A number for each row of ``logits`` ``(pairs, labels)``, which are 32 bit."""

    def row(self, query: Ids, text: Ids) -> Row:
        """The model's input for the token ids of a pair."""
        return self.loaded.tokenizer.pair_row(query, text)

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float]]:
        """Score the pairs of all queries, in batches of pairs of similar length."""
        loaded = self.loaded
        texts = list(dict.fromkeys(text for job in jobs for text in job.texts))
        # The model never sees more of a text than its limit, so the rest need not be kept.
        ids, lengths = loaded.tokenizer.cut_ids(texts, loaded.limit)
        query_ids, query_lengths = loaded.tokenizer.cut_ids([job.query for job in jobs], loaded.limit)
        ids_of = dict(zip(texts, ids, strict=True))
        pairs = self._pairs(jobs, query_lengths, dict(zip(texts, lengths, strict=True)), context)
        scores = [[0.0] * len(job.texts) for job in jobs]
        for batch in batches([pair.query_tokens + pair.text_tokens for pair in pairs], self.batch_size):
            context.deadline.check()
            chosen = [pairs[position] for position in batch]
            rows = [
                self.row(
                    query_ids[pair.job][: pair.query_tokens],
                    ids_of[jobs[pair.job].texts[pair.place]][: pair.text_tokens],
                )
                for pair in chosen
            ]
            output, _ = loaded.forward(rows)
            for pair, score in zip(chosen, self.relevance(output.logits.float()), strict=True):
                scores[pair.job][pair.place] = score
        return scores

    def _pairs(
        self, jobs: Sequence[RerankJob], query_lengths: Sequence[int], lengths: dict[str, int], context: Context
    ) -> list[_Pair]:
        pairs = []
        for number, (job, length) in enumerate(zip(jobs, query_lengths, strict=True)):
            own = [_Pair(number, place, *self.room(length, lengths[text])) for place, text in enumerate(job.texts)]
            cut = [pair.text_tokens < lengths[text] for pair, text in zip(own, job.texts, strict=True)]
            warn_of_cuts(any(pair.query_tokens < length for pair in own), cut, context, number)
            pairs += own
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
