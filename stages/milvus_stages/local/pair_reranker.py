"""Bases of the rerankers that run a transformer in this process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

from milvus_pipeline.plugin import Context, RerankJob
from milvus_stages.local.anytime import AnytimeReranker, Clock, Item, Scores, Work, late_error, run_best_first
from milvus_stages.local.models import Kind, LocalModel, ModelFiles
from milvus_stages.local.tokens import Ids, Row, Tokens

if TYPE_CHECKING:
    import torch

_Pair: TypeAlias = tuple[int, int]
"""One text to score: the number of its job, and its place among the job's texts."""


class LocalReranker(LocalModel, AnytimeReranker):
    """A reranker on a local transformer. Subclasses write ``score_into``.

    If a query has a deadline, its best hits are scored first. When the time is up, the hits that were not reached keep
    their order behind those that were, and the report calls the work partial.
    """

    @property
    def executor(self) -> Executor:
        """The threads of the model."""
        return self.loaded.threads.executor()

    @abstractmethod
    def prepare(self, files: ModelFiles) -> None:
        """Read what the stage needs from the model's files. Raises StageError if the model does not fit the stage."""

    @abstractmethod
    def document_room(self, query: int) -> int:
        """Return how many tokens of a document are read beside a query of ``query`` tokens. Needs ``prepare``."""

    @abstractmethod
    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Write the scores of the jobs' texts to their places, the first texts of every job first.

        Raises:
            DeadlineError: the time is up. What was written by then counts.
        """

    def scoring(self, jobs: Sequence[RerankJob], context: Context) -> Generator[Work, None, Scores]:
        """Yield the work on the jobs; report which of their texts were not scored in time."""
        growing: Scores = [[None] * len(job.texts) for job in jobs]
        yield lambda clock: self.score_into(growing, jobs, clock)
        scores = [list(own) for own in growing]  # the thread may still write into the original
        for position, own in enumerate(scores):
            missing, count = own.count(None), len(own)
            late = late_error(f"{missing} of {count} documents were not scored", context.deadline)
            if missing == count:  # a query that has failed already keeps its first failure
                context.fail(position, late)
            elif missing and position not in context.failures:
                context.partial(position, late.what)
        return scores


class _PairInput(NamedTuple):
    """The token ids of a pair that the model reads, and whether some of the text's were cut."""

    query: Ids
    text: Ids
    cut: bool


class PairReranker(LocalReranker):
    """A reranker that reads query and document together and gives the pair one number.

    The pairs of all queries share forward passes. Each query and each document is tokenized once.
    """

    kind: ClassVar[Kind] = "classifier"

    def tokenize(self, texts: Sequence[str], clock: Clock, *, queries: bool) -> list[Tokens]:
        """Return the tokens of queries or of documents, which may be more than fit into a pair.

        Args:
            texts: any number of them.
            clock: of the call.
            queries: whether the texts are queries.
        """
        # The model never sees more of a text than its limit, so the rest need not be kept.
        return self.loaded.tokenizer.tokens(texts, self.loaded.limit, clock.check)

    @abstractmethod
    def room(self, query: Tokens, text: Tokens) -> tuple[int, int]:
        """Return how many of its first tokens each side of a pair keeps, special tokens not counted."""

    def row(self, query: Ids, text: Ids) -> Row:
        """Return the model's input for a pair."""
        return self.loaded.tokenizer.pair_row(query, text)

    @abstractmethod
    def relevance(self, logits: torch.Tensor) -> list[float]:
        """Return a number for each row of ``logits``, which are ``(pairs, labels)`` in 32 bit."""

    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Score the pairs of all queries, in batches of pairs of similar length."""
        queries = self.tokenize([job.query for job in jobs], clock, queries=True)
        tokens: dict[str, Tokens] = {}
        inputs: dict[_Pair, _PairInput] = {}
        query_cut = [False] * len(jobs)
        texts_cut = [0] * len(jobs)

        def read(pairs: Sequence[_Pair]) -> list[int]:
            texts = dict.fromkeys(jobs[job].texts[place] for job, place in pairs)
            new = [text for text in texts if text not in tokens]
            tokens.update(zip(new, self.tokenize(new, clock, queries=False), strict=True))
            inputs.clear()
            for job, place in pairs:
                query, text = queries[job], tokens[jobs[job].texts[place]]
                query_kept, text_kept = self.room(query, text)
                query_cut[job] |= query_kept < query.length
                # The ids of a text that is not cut are not copied: all pairs with this text share the list.
                ids = text.ids if len(text.ids) <= text_kept else text.ids[:text_kept]
                inputs[job, place] = _PairInput(query.ids[:query_kept], ids, text_kept < text.length)
            return [len(own.query) + len(own.text) for own in inputs.values()]

        def run(pairs: Sequence[_Pair]) -> None:
            rows = [self.row(inputs[pair].query, inputs[pair].text) for pair in pairs]
            output, _ = self.loaded.forward(rows, clock)
            for (job, place), score in zip(pairs, self.relevance(output.logits.float()), strict=True):
                scores[job][place] = score
                texts_cut[job] += inputs[job, place].cut

        pairs = by_rank([[(job, place) for place in range(len(own))] for job, own in enumerate(scores)])
        try:
            run_best_first(pairs, read, run, self.batch_size, clock)
        finally:
            for number, job in enumerate(jobs):
                warn_of_cuts(query_cut[number], texts_cut[number], len(job.texts), clock.context, number)


def by_rank(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """Return the first of each list, then the second of each, and so on: every query gets its share of the time."""
    longest = max(map(len, lists), default=0)
    return [own[place] for place in range(longest) for own in lists if place < len(own)]


def warn_of_cuts(query: bool, cut: int, count: int, context: Context, position: int) -> None:
    """Report that a query was too long, and how many of its ``count`` documents were."""
    if query:
        context.warn("the query is longer than the model reads; its end was left out", position)
    if cut:
        context.warn(f"{cut} of {count} documents are longer than the model reads; their ends were left out", position)
        context.note(position, documents_cut=cut)
