"""What the rerankers that run a transformer in this process have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from milvus_pipeline import Context, Deadline, Reranker, RerankJob
from milvus_stages._models import LocalModel
from milvus_stages._tokens import Ids, batches

if TYPE_CHECKING:
    import torch

QUERY_CUT = "the query is longer than the model may see; its end was left out"


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


class Cut(NamedTuple):
    """The token ids of a query and a document that a model shall see, and whether any were left out."""

    query: Ids
    text: Ids
    query_cut: bool
    text_cut: bool


class PairReranker(LocalReranker):
    """A reranker that reads query and document together and gives the pair one number.

    The pairs of all queries share forward passes. Query and document are tokenized once each, however many pairs
    they are part of.
    """

    @abstractmethod
    def cut(self, query: Ids, text: Ids) -> Cut:
        """Cut a pair's token ids to what the model may see; special tokens are added afterwards."""

    @abstractmethod
    def relevance(self, logits: torch.Tensor) -> list[float]:
        """A number for each row of ``logits`` ``(pairs, labels)``, which are 32 bit."""

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float]]:
        """Score the pairs of all queries, in batches of pairs of similar length."""
        tokenizer = self.loaded.tokenizer
        texts = list(dict.fromkeys(text for job in jobs for text in job.texts))
        # A model sees no more of a text than its limit, so the rest need not be kept.
        text_ids, beyond = tokenizer.cut_ids(texts, self.loaded.limit)
        known = dict(zip(texts, zip(text_ids, beyond, strict=True), strict=True))
        query_ids = tokenizer.ids([job.query for job in jobs])
        pairs: list[Cut] = []
        places: list[tuple[int, int]] = []
        for number, job in enumerate(jobs):
            own = []
            for place, text in enumerate(job.texts):
                ids, was_beyond = known[text]
                pair = self.cut(query_ids[number], ids)
                own.append(pair._replace(text_cut=pair.text_cut or was_beyond))
                places.append((number, place))
            pairs += own
            _warn_of_cuts(own, context, number)
        scores = [[0.0] * len(job.texts) for job in jobs]
        for batch in batches([len(pair.query) + len(pair.text) for pair in pairs], self.batch_size):
            context.deadline.check()
            output, _ = self.loaded.forward(
                [tokenizer.pair_row(pairs[position].query, pairs[position].text) for position in batch]
            )
            for position, score in zip(batch, self.relevance(output.logits.float()), strict=True):
                number, place = places[position]
                scores[number][place] = score
        return scores


def _warn_of_cuts(pairs: Sequence[Cut], context: Context, position: int) -> None:
    if any(pair.query_cut for pair in pairs):
        context.warn(QUERY_CUT, position)
    warn_of_cut_texts(sum(pair.text_cut for pair in pairs), len(pairs), context, position)


def warn_of_cut_texts(cut: int, count: int, context: Context, position: int) -> None:
    """Say in a query's report how many of its documents were too long."""
    if cut:
        context.warn(
            f"{cut} of {count} documents are longer than the model may see; their ends were left out", position
        )
        context.note(position, documents_cut=cut)
