"""Bases of the rerankers that run a transformer in this process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias, TypeVar

from milvus_pipeline.plugin import Context, Reranker, RerankJob
from milvus_stages.local.anytime import Clock, arun_in_time, budget_text, late_error, run_best_first, run_in_time
from milvus_stages.local.models import Kind, LocalModel
from milvus_stages.local.tokens import Ids, Row, Tokens

if TYPE_CHECKING:
    import torch

_Item = TypeVar("_Item")
Check: TypeAlias = Callable[[], None]
Scores: TypeAlias = list[list[float | None]]
"""For each job the scores of its texts; None for a text that is not scored yet."""


class LocalReranker(LocalModel, Reranker):
    """A reranker on a local transformer. Subclasses write ``score_into``.

    If a query has a deadline, its best hits are scored first. When the time is up, the hits that were not reached keep
    their order behind those that were, and the report calls the work partial.
    """

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Scores:
        """Score several queries at once: all of their texts, or as many of the first ones as there is time for.

        Raises:
            DeadlineError: the call was cancelled. A query with no text scored in time fails alone.
        """
        scores = _unscored(jobs)
        run_in_time(lambda clock: self.score_into(scores, jobs, clock), context)
        _report_unscored(scores, context)
        return scores

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> Scores:
        """``score_batch`` in a thread, for an event loop."""
        growing = _unscored(jobs)
        await arun_in_time(lambda clock: self.score_into(growing, jobs, clock), context, self.loaded.executor)
        scores = [list(own) for own in growing]  # the thread may still write into the original
        _report_unscored(scores, context)
        return scores

    @abstractmethod
    def document_room(self, query: int) -> int:
        """Return how many tokens of a document are read beside a query of ``query`` tokens. Needs ``prepare``."""

    @abstractmethod
    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Write the scores of the jobs' texts to their places, the first texts of every job first.

        Raises:
            DeadlineError: the time is up. What was written by then counts.
        """


def _unscored(jobs: Sequence[RerankJob]) -> Scores:
    return [[None] * len(job.texts) for job in jobs]


def _report_unscored(scores: Scores, context: Context) -> None:
    """Report which queries have documents that were not scored in time."""
    for position, own in enumerate(scores):
        missing, count = own.count(None), len(own)
        if not missing or position in context.failures:
            continue
        if missing < count:
            reason = f"{missing} of {count} documents were not scored {budget_text(context.deadline)}"
            context.partial(position, reason)
        else:
            context.fail(position, late_error(f"none of {count} documents was scored", context.deadline))


class _Pair(NamedTuple):
    """One text to score: the number of its job, and its place among the job's texts."""

    job: int
    place: int


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

    def tokenize(self, texts: Sequence[str], check: Check, *, queries: bool) -> list[Tokens]:
        """Return the tokens of queries or of documents, which may be more than fit into a pair.

        Args:
            texts: any number of them.
            check: called between parts of the work, which it may end by raising.
            queries: whether the texts are queries.
        """
        # The model never sees more of a text than its limit, so the rest need not be kept.
        return self.loaded.tokenizer.tokens(texts, self.loaded.limit, check)

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
        pairs = _Pairs(self, scores, jobs, clock)
        try:
            run_best_first(pairs.in_order, pairs.read, pairs.run, self.batch_size, clock)
        finally:
            pairs.report_cuts()


class _Pairs:
    """The pairs of all queries, and what has been read of them."""

    def __init__(self, stage: PairReranker, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        self.in_order = by_rank([[_Pair(job, place) for place in range(len(own))] for job, own in enumerate(scores)])
        self._stage = stage
        self._scores = scores
        self._jobs = jobs
        self._clock = clock
        self._queries = stage.tokenize([job.query for job in jobs], clock.check, queries=True)
        self._tokens: dict[str, Tokens] = {}
        self._inputs: dict[_Pair, _PairInput] = {}
        self._query_cut = [False] * len(jobs)
        self._texts_cut = [0] * len(jobs)

    def read(self, pairs: Sequence[_Pair]) -> list[int]:
        """Tokenize the texts that are not yet; return the tokens in each pair."""
        texts = dict.fromkeys(self._text(pair) for pair in pairs)
        new = [text for text in texts if text not in self._tokens]
        self._tokens.update(zip(new, self._stage.tokenize(new, self._clock.check, queries=False), strict=True))
        self._inputs = {pair: self._input(pair) for pair in pairs}
        return [len(own.query) + len(own.text) for own in self._inputs.values()]

    def run(self, pairs: Sequence[_Pair]) -> None:
        """Score a batch."""
        rows = [self._stage.row(own.query, own.text) for own in (self._inputs[pair] for pair in pairs)]
        output, _ = self._stage.loaded.forward(rows, self._clock)
        for pair, score in zip(pairs, self._stage.relevance(output.logits.float()), strict=True):
            self._scores[pair.job][pair.place] = score
            self._texts_cut[pair.job] += self._inputs[pair].cut

    def report_cuts(self) -> None:
        """Report which queries, and how many of the scored texts, were cut."""
        for number, job in enumerate(self._jobs):
            warn_of_cuts(self._query_cut[number], self._texts_cut[number], len(job.texts), self._clock.context, number)

    def _text(self, pair: _Pair) -> str:
        return self._jobs[pair.job].texts[pair.place]

    def _input(self, pair: _Pair) -> _PairInput:
        query, text = self._queries[pair.job], self._tokens[self._text(pair)]
        query_kept, text_kept = self._stage.room(query, text)
        self._query_cut[pair.job] |= query_kept < query.length
        # The ids of a text that is not cut are not copied: all pairs with this text share the list.
        ids = text.ids if len(text.ids) <= text_kept else text.ids[:text_kept]
        return _PairInput(query.ids[:query_kept], ids, text_kept < text.length)


def by_rank(lists: Sequence[Sequence[_Item]]) -> list[_Item]:
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
