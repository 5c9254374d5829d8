"""How much of a list of texts fits into a number of tokens and characters."""

from __future__ import annotations

from typing import NamedTuple

from milvus_stages.truncate._tokenizer import TokenCounter


class Cost(NamedTuple):
    """What a text takes from the budget."""

    tokens: int
    chars: int


class Budget:
    """What is left while texts are taken in order.

    Args:
        tokens: how many may be taken; None for no limit.
        chars: the same for characters.
        per_text: tokens that every text costs beside its own.
        counter: counts tokens; None only without a limit of tokens.
    """

    def __init__(self, tokens: int | None, chars: int | None, per_text: int, counter: TokenCounter | None) -> None:
        self._tokens = tokens
        self._chars = chars
        self._per_text = per_text
        self._counter = counter
        self.spent = Cost(0, 0)

    def cost(self, text: str) -> Cost:
        """What a text would take."""
        own = self._counter.count(text) if self._counter else 0
        return Cost(own + self._per_text, len(text))

    def fits(self, cost: Cost) -> bool:
        """True where so much is left."""
        return (self._tokens is None or self.spent.tokens + cost.tokens <= self._tokens) and (
            self._chars is None or self.spent.chars + cost.chars <= self._chars
        )

    def take(self, cost: Cost) -> None:
        """Spend it."""
        self.spent = Cost(self.spent.tokens + cost.tokens, self.spent.chars + cost.chars)

    def prefix(self, text: str) -> str:
        """The beginning of a text that fits into what is left; empty where nothing of it does."""
        if self._chars is not None:
            text = word_prefix(text, max(0, self._chars - self.spent.chars))
        if self._tokens is not None and self._counter is not None:
            text = self._counter.prefix(text, max(0, self._tokens - self.spent.tokens - self._per_text))
        return text if text.strip() else ""


def word_prefix(text: str, limit: int) -> str:
    """At most ``limit`` characters of the text, ending between words where that costs less than half of them.

    Scripts without blanks, and words of great length, are cut at the limit itself.
    """
    if len(text) <= limit:
        return text
    cut = text[:limit]
    if not cut or text[limit].isspace():
        return cut.rstrip()
    start_of_last_word = len(cut.rstrip()) if cut[-1].isspace() else _after_last_blank(cut)
    whole_words = cut[:start_of_last_word].rstrip()
    return whole_words if 2 * len(whole_words) >= limit else cut


def _after_last_blank(text: str) -> int:
    return next((place for place in range(len(text), 0, -1) if text[place - 1].isspace()), 0)
