"""Small stages for tests of the framework, with results that one can work out by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from milvus_pipeline import DeadlineError, Hit, QueryError, SearchResult, StageError
from milvus_pipeline.plugin import Context, Reranker, Stage, register

DOCUMENTS = ("red apple", "green pear and red plum", "blue sky", "")


@register("listed_search")
class ListedSearch(Stage):
    """Gives every query the same documents, in their order."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({"hits", "text"})

    documents: tuple[str | None, ...] = DOCUMENTS

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        hits = [
            Hit(position, text, 0.0, {"length": len(text or "")}).ranked(self.name, 1.0 - position / 10, position + 1)
            for position, text in enumerate(self.documents)
        ]
        return [result.with_hits(hits) for result in results]


@register("word_overlap")
class WordOverlap(Reranker):
    """Scores a text by the number of the query's words in it."""

    weight: float = 1.0

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        words = set(query.split())
        return [self.weight * len(words & set(text.split())) for text in texts]


@register("given_scores")
class GivenScores(Reranker):
    """Gives the scores of its configuration, which may contain None and NaN."""

    scores: tuple[float | None, ...]

    def score(self, query: str, texts: Sequence[str]) -> list[float | None]:
        return list(self.scores)


@register("faulty")
class Faulty(Stage):
    """Fails in `setup`, for the whole batch, for queries with a word, or by returning too few results."""

    needs: ClassVar[frozenset[str]] = frozenset({"hits"})

    how: str = "process"
    word: str = ""
    returned: Any = None

    def setup(self) -> None:
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "setup":
            raise OSError("no such device")

    def teardown(self) -> None:
        if self.how == "teardown":
            raise OSError("stuck")

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        if self.how == "echo":
            raise ValueError(f"cannot tokenize {results[0].hits[1].text!r}")
        if self.how == "return":
            return self.returned
        if self.how == "short":
            return results[1:]
        if self.how == "word":
            for position, result in enumerate(results):
                if self.word in result.query.text:
                    context.fail(position, QueryError("this word cannot be looked up"))
                if "late" in result.query.text:
                    context.fail(position, DeadlineError("timed out"))
            return [result.with_hits(result.hits[:1]) for result in results]
        raise ZeroDivisionError("division by zero")


@register("slow")
class Slow(Stage):
    """Sleeps."""

    seconds: float = 0.2
    setup_seconds: float = 0.0

    def setup(self) -> None:
        time.sleep(self.setup_seconds)

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        time.sleep(self.seconds)
        return results


@register("first_only")
class FirstOnly(Stage):
    """Keeps the first hit; instant."""

    needs: ClassVar[frozenset[str]] = frozenset({"hits"})
    instant: ClassVar[bool] = True

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        return [result.with_hits(result.hits[:1]) for result in results]


@register("needs_open")
class NeedsOpen(Stage):
    """Fails if it is not open."""

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        if not self.is_open:
            raise StageError("is not open")
        return results
