"""The stage that cuts the hits to what their reader can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, PrivateAttr, model_validator

from milvus_pipeline import ConfigError, Hit, SearchResult, StageError
from milvus_pipeline.plugin import Context, Stage
from milvus_stages.truncate.budget import Budget, Cost, TokenCounter, load_counter


class Truncate(Stage):
    """Cuts the hits by a threshold on a named score, by number, and by a budget of tokens or characters.

    The limits apply in this order:

    1. ``min_score``: hits are dropped if their score by the stage ``score_of`` is lower or missing. If no hit of a
       result has that score (the stage was skipped, or it is a reranker in a dry run, which scores nothing), the
       threshold is skipped too, and the result is partial, with the code ``no_score``.
    2. ``top_k``: the first ``top_k`` hits are kept.
    3. ``max_tokens`` and ``max_chars``: hits are kept in their order while they fit into both. The first that does not
       fit ends the list, so a shorter hit never passes a better one; ``cut`` decides whether that hit is dropped whole
       or its text cut. A hit without text costs only ``per_hit``.

    Tokens are counted hit by hit, without special tokens. The report's details give the number of hits ``dropped`` (and
    ``dropped_by`` which limit) and ``cut``, and what was spent: ``tokens`` (with ``per_hit``) and ``chars``.
    """

    type: ClassVar[str] = "truncate"
    needs: ClassVar[frozenset[str]] = frozenset({"hits"})
    instant: ClassVar[bool] = True

    top_k: Annotated[
        int | None,
        Field(ge=1, validation_alias=AliasChoices("top_k", "top_n"), description="Hits to keep. Alias: top_n."),
    ] = None
    min_score: Annotated[
        float | None,
        Field(allow_inf_nan=False, description="Lowest score to keep, on the scale of the stage `score_of`."),
    ] = None
    score_of: Annotated[
        str | None, Field(min_length=1, description="Name of the stage whose score `min_score` applies to.")
    ] = None
    max_tokens: Annotated[
        int | None, Field(ge=1, description="Tokens of all texts together, `reserve` and `per_hit` included.")
    ] = None
    tokenizer: Annotated[
        str | None,
        Field(min_length=1, description="Counts the tokens: a hub id, a local folder, or package:NAME/PATH."),
    ] = None
    reserve: Annotated[int, Field(ge=0, description="Tokens of `max_tokens` to keep free, such as for the prompt.")] = 0
    per_hit: Annotated[
        int, Field(ge=0, description="Tokens that each hit costs beside its text, for labels and separators.")
    ] = 0
    max_chars: Annotated[int | None, Field(ge=1, description="Characters of all texts together.")] = None
    cut: Annotated[
        Literal["drop", "cut"],
        Field(description="The first hit that does not fit: drop it whole, or cut it after a token (or a word)."),
    ] = "drop"

    _counter: TokenCounter | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _limits_make_sense(self) -> Self:
        if self.top_k is None and self.min_score is None and self.max_tokens is None and self.max_chars is None:
            raise ConfigError("sets no limit", "give at least one of top_k, min_score, max_tokens, max_chars")
        if self.min_score is not None and self.score_of is None:
            raise ConfigError(
                "min_score needs `score_of`, as the scores of different stages have different scales",
                "name the stage whose score it applies to, such as score_of: late_interaction",
            )
        pairs = {"score_of": "min_score", "tokenizer": "max_tokens", "reserve": "max_tokens", "per_hit": "max_tokens"}
        for name, limit in pairs.items():
            if getattr(self, name) and getattr(self, limit) is None:
                raise ConfigError(f"{name} has no effect without {limit}", f"set {limit}, or leave {name} out")
        if self.max_tokens is None:
            return self
        if self.tokenizer is None:
            raise ConfigError("max_tokens needs `tokenizer`", "name that of the model that will read the texts")
        if self.reserve + self.per_hit >= self.max_tokens:
            raise ValueError(
                f"reserve and per_hit ({self.reserve} + {self.per_hit}) leave nothing of max_tokens ({self.max_tokens})"
            )
        return self

    def requires(self) -> frozenset[str]:
        """Hits; their text if tokens or characters are counted; the score that the threshold applies to."""
        text = {"text"} if self._budgeted else set()
        score = {f"score:{self.score_of}"} if self.score_of is not None else set()
        return self.needs | text | score

    @property
    def _budgeted(self) -> bool:
        return self.max_tokens is not None or self.max_chars is not None

    def setup(self) -> None:
        """Load the tokenizer."""
        if self.tokenizer is not None:
            self._counter = load_counter(self.tokenizer, wanted_by=self.name)

    def teardown(self) -> None:
        """Release the tokenizer."""
        self._counter = None

    def identity(self) -> Mapping[str, Any]:
        """Return the tokenizer and its file's revision, if tokens are counted."""
        counter = self._opened_counter()
        return {} if counter is None else {"tokenizer": self.tokenizer, "revision": counter.revision}

    def _opened_counter(self) -> TokenCounter | None:
        if self.tokenizer is not None and self._counter is None:
            raise StageError(f"{self.name} is not open, so it cannot count tokens", "call open() first")
        return self._counter

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Cut the hits of every result."""
        return [self._truncated(result, position, context) for position, result in enumerate(results)]

    def dry_run(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process``, with a warning for a threshold that was skipped: a dry run has no scores."""
        part = context.part(range(len(results)))
        kept = self.process(results, part)
        for position, shortfall in enumerate(part.partials):
            if shortfall is not None:
                context.warn(shortfall.reason, position)
        return kept

    def _truncated(self, result: SearchResult, position: int, context: Context) -> SearchResult:
        above = self._above_threshold(result, position, context)
        first = above[: self.top_k]
        kept = self._within_budget(first, position, context) if self._budgeted else first
        dropped = {
            "min_score": len(result.hits) - len(above),
            "top_k": len(above) - len(first),
            "budget": len(first) - len(kept),
        }
        context.note(
            position,
            dropped=len(result.hits) - len(kept),
            dropped_by={limit: count for limit, count in dropped.items() if count},
        )
        return result.with_hits(kept)

    def _above_threshold(self, result: SearchResult, position: int, context: Context) -> Sequence[Hit]:
        hits = result.hits
        if self.min_score is None or self.score_of is None or not hits:
            return hits
        scores = [hit.scores.get(self.score_of) for hit in hits]
        scored = [score for score in scores if score is not None]
        if not scored:
            context.note(position, skipped=["min_score"])
            # A stage that is not in the reports is a fallback that was not needed.
            if any(report.stage == self.score_of for report in result.reports):
                reason = f"no hit carries a score by {self.score_of!r}, so min_score {self.min_score:g} was not applied"
                context.partial(position, reason, "no_score")
            return hits
        if missing := len(hits) - len(scored):
            context.warn(f"{missing} of {len(hits)} hits have no score by {self.score_of!r}; dropped", position)
        if max(scored) < self.min_score:
            best = f"the best score by {self.score_of!r} is {max(scored):.4g}"
            context.warn(f"no hit reaches min_score {self.min_score:g}; {best}", position)
        return [hit for hit, score in zip(hits, scores, strict=True) if score is not None and score >= self.min_score]

    def _within_budget(self, hits: Sequence[Hit], position: int, context: Context) -> list[Hit]:
        tokens = None if self.max_tokens is None else self.max_tokens - self.reserve
        budget = Budget(tokens, self.max_chars, self.per_hit, self._opened_counter())
        kept: list[Hit] = []
        shortened = 0
        for hit in hits:
            cost = budget.cost(hit.text or "")
            if budget.take(cost):
                kept.append(hit)
                continue
            text = budget.prefix(hit.text or "") if self.cut == "cut" else ""
            if text:
                less = budget.cost(text)
                budget.take(less)
                kept.append(hit.with_text(text))
                shortened = 1
                change = f"from {self._cost_text(cost)} to {self._cost_text(less)}"
                context.warn(f"hit {len(kept)} was cut {change}", position)
            elif not kept:
                context.warn(f"no hit fits: the first needs {self._cost_text(cost)}", position)
            break
        context.note(position, cut=shortened, **self._figures(budget.spent))
        return kept

    def _figures(self, cost: Cost) -> dict[str, int]:
        figures = {} if self.max_tokens is None else {"tokens": cost.tokens}
        return figures if self.max_chars is None else {**figures, "chars": cost.chars}

    def _cost_text(self, cost: Cost) -> str:
        return " and ".join(f"{count} {what}" for what, count in self._figures(cost).items())
