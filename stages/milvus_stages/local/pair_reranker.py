"""What the rerankers that run a transformer in this process have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias, TypeVar

from milvus_pipeline import DeadlineError
from milvus_pipeline.plugin import Context, Deadline, Reranker, RerankJob
from milvus_stages.local.anytime import Clock, Work, ending_in_time, in_words, until_time_is_up, work_off
from milvus_stages.local.models import Kind, LocalModel
from milvus_stages.local.tokens import Ids, Row, Tokens

if TYPE_CHECKING:
    import torch

_Item = TypeVar("_Item")
_ENDLESS = 1_000_000  # tokens, more than any model reads
Check: TypeAlias = Callable[[], None]
Scores: TypeAlias = list[list[float | None]]
"""For each job the scores of its texts; None for one that is not scored yet."""


class LocalReranker(LocalModel, Reranker):
    """A reranker on a local transformer. Write ``score_into``.

    Where a query has a deadline, its best hits are scored first, in chunks. When the time is up, the hits that were not
    reached keep their order behind those that were, and the report calls the work partial.
    """

    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """The relevance of each text to the query; see ``score_batch``."""
        return self.scored_alone(query, texts, Deadline())

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Scores:
        """Score several queries at once: all of their texts, or as many of the first ones as there is time for.

        Raises:
            DeadlineError: the call was given up. A query none of whose texts was scored in time fails alone.
        """
        scores = _unscored(jobs)
        with ending_in_time(context):
            self.score_into(scores, jobs, Clock(context))
        _report_lacks(scores, context)
        return scores

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> Scores:
        """``score_batch`` in a thread, for an event loop, which goes on with what is scored when the time is up."""
        growing = _unscored(jobs)
        with ending_in_time(context):
            await until_time_is_up(lambda clock: self.score_into(growing, jobs, clock), context)
        scores = [list(own) for own in growing]  # the thread may still write into the other
        _report_lacks(scores, context)
        return scores

    @abstractmethod
    def document_room(self, query: int) -> int:
        """Tokens of a document that are read beside a query of so many. Needs what ``prepare`` has settled."""

    @abstractmethod
    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Put the scores of the jobs' texts in their places, the first texts of every job first.

        Raises:
            DeadlineError: the time is up. What is in its place by then counts.
        """


def _unscored(jobs: Sequence[RerankJob]) -> Scores:
    return [[None] * len(job.texts) for job in jobs]


def _report_lacks(scores: Scores, context: Context) -> None:
    """Say in the queries' reports what was not scored in time."""
    for position, own in enumerate(scores):
        missing, count = own.count(None), len(own)
        if not missing or position in context.failures:
            continue
        given = in_words(context.deadline)
        if missing < count:
            context.partial(position, f"{missing} of {count} documents were not scored {given}")
        else:
            lack = f"not one of {count} documents was scored {given}; raise `timeout` or ask for less"
            context.fail(position, DeadlineError(lack))


class _Pair(NamedTuple):
    """One text to score: number of its job, place among the job's texts."""

    job: int
    place: int


class _PairInput(NamedTuple):
    """The token ids of a pair that the model shall see, and whether they are all of the text."""

    query: Ids
    text: Ids
    cut: bool


class PairReranker(LocalReranker):
    """A reranker that reads query and document together and gives the pair one number.

    The pairs of all queries share forward passes. Query and document are tokenized once each, however many pairs
    they are part of.
    """

    kind: ClassVar[Kind] = "classifier"

    def query_tokens(self, queries: Sequence[str], check: Check) -> list[Tokens]:
        """The tokens of the queries; more of them than fit beside a document is fine.

        Args:
            queries: the texts.
            check: called between parts of the work, which it may end by raising.
        """
        # The model never sees more of a text than its limit, so the rest need not be kept.
        return self.loaded.tokenizer.tokens(queries, self.loaded.limit, check)

    def text_tokens(self, texts: Sequence[str], check: Check) -> list[Tokens]:
        """The tokens of the documents; more of them than fit beside a query is fine. Arguments as above."""
        return self.loaded.tokenizer.tokens(texts, self.loaded.limit, check)

    def document_room(self, query: int) -> int:
        """Tokens of a document that are read beside a query of so many. Needs what ``prepare`` has settled."""
        endless = [0] * _ENDLESS
        return self.room(Tokens([0] * query, query), Tokens(endless, _ENDLESS))[1]

    @abstractmethod
    def room(self, query: Tokens, text: Tokens) -> tuple[int, int]:
        """How many of its first tokens each side of a pair keeps, special tokens not counted."""

    def row(self, query: Ids, text: Ids) -> Row:
        """The model's input for a pair."""
        return self.loaded.tokenizer.pair_row(query, text)

    @abstractmethod
    def relevance(self, logits: torch.Tensor) -> list[float]:
        """A number for each row of ``logits`` ``(pairs, labels)``, which are 32 bit."""

    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Score the pairs of all queries, in batches of pairs of similar length."""
        pairs = _Pairs(self, scores, jobs, clock)
        try:
            work_off(pairs, self.batch_size, clock)
        finally:
            pairs.report(clock.context)


class _Pairs(Work[_Pair]):
    """The pairs of all queries: the first text of each, then the second of each, and so on."""

    def __init__(self, stage: PairReranker, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        super().__init__(by_rank([[_Pair(job, place) for place in range(len(own))] for job, own in enumerate(scores)]))
        self._stage = stage
        self._scores = scores
        self._jobs = jobs
        self._clock = clock
        self._queries = stage.query_tokens([job.query for job in jobs], clock.check)
        self._tokens: dict[str, Tokens] = {}
        self._inputs: dict[_Pair, _PairInput] = {}
        self._query_cut = [False] * len(jobs)
        self._texts_cut = [0] * len(jobs)

    def characters(self, item: _Pair) -> int:
        text = self._jobs[item.job].texts[item.place]
        return 0 if text in self._tokens else len(text)

    def lengths(self, items: Sequence[_Pair]) -> list[int]:
        jobs = self._jobs
        texts = dict.fromkeys(jobs[job].texts[place] for job, place in items)
        new = [text for text in texts if text not in self._tokens]
        self._tokens.update(zip(new, self._stage.text_tokens(new, self._clock.check), strict=True))
        for item in items:
            if item not in self._inputs:
                self._inputs[item] = self._input(item)
        return [len(own.query) + len(own.text) for own in (self._inputs[item] for item in items)]

    def run(self, items: Sequence[_Pair]) -> None:
        rows = [self._stage.row(own.query, own.text) for own in (self._inputs[item] for item in items)]
        output, _ = self._stage.loaded.forward(rows, self._clock)
        for item, score in zip(items, self._stage.relevance(output.logits.float()), strict=True):
            self._scores[item.job][item.place] = score
            self._texts_cut[item.job] += self._inputs[item].cut

    def report(self, context: Context) -> None:
        """Say what was cut of the texts that were scored."""
        for number, job in enumerate(self._jobs):
            warn_of_cuts(self._query_cut[number], self._texts_cut[number], len(job.texts), context, number)

    def _input(self, item: _Pair) -> _PairInput:
        query, text = self._queries[item.job], self._tokens[self._jobs[item.job].texts[item.place]]
        query_kept, text_kept = self._stage.room(query, text)
        self._query_cut[item.job] |= query_kept < query.length
        # Documents that are not cut are not copied: their list is shared by the pairs of all queries.
        ids = text.ids if len(text.ids) <= text_kept else text.ids[:text_kept]
        return _PairInput(query.ids[:query_kept], ids, text_kept < text.length)


def by_rank(lists: Sequence[Sequence[_Item]]) -> list[_Item]:
    """The first of each list, then the second of each, and so on: every query gets its part of the time."""
    most = max(map(len, lists), default=0)
    return [own[place] for place in range(most) for own in lists if place < len(own)]


def warn_of_cuts(query: bool, cut: int, count: int, context: Context, position: int) -> None:
    """Say in a query's report whether it was too long, and how many of its ``count`` documents were."""
    if query:
        context.warn("the query is longer than the model may see; its end was left out", position)
    if cut:
        context.warn(
            f"{cut} of {count} documents are longer than the model may see; their ends were left out", position
        )
        context.note(position, documents_cut=cut)
