"""Counting tokens, and cutting a text at the end of one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from milvus_pipeline import StageError
from milvus_pipeline.plugin import error_text, require
from milvus_stages.local.files import commit_of, digest_of, locate

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


TOKENIZER_FILE = "tokenizer.json"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenCounter:
    """A tokenizer as a measure of texts, without special tokens. Nothing changes it, so threads may share it.

    Args:
        tokenizer: as it was read.
        revision: which file that was from: the commit of a hub's snapshot, or a digest.
    """

    def __init__(self, tokenizer: Tokenizer, revision: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.revision = revision
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        """Number of tokens of the text."""
        return len(self._encoded(text))

    def prefix(self, text: str, limit: int) -> str:
        """The longest beginning of the text that ends where a token ends and has at most ``limit`` tokens.

        It is cut by the tokenizer's character offsets, so it is a true prefix: nothing is decoded.
        """
        encoding = self._encoded(text)
        if len(encoding) <= limit:
            return text
        offsets = encoding.offsets
        for kept in range(limit, 0, -1):
            end = offsets[kept - 1][1]
            # One character may be several tokens (bytes of an emoji); it goes whole or not at all.
            if offsets[kept][0] < end:
                continue
            # Some tokenizers split a beginning otherwise than they split it within the whole text.
            if self.count(text[:end]) <= limit:
                return text[:end]
        return ""

    def _encoded(self, text: str) -> Encoding:
        # A lone surrogate is no character that a tokenizer takes; one sign for another keeps the offsets right.
        return self._tokenizer.encode(_LONE_SURROGATE.sub("\ufffd", text), add_special_tokens=False)


def load_counter(name: str, *, wanted_by: str) -> TokenCounter:
    """The tokenizer of a model: a hub id, a local folder, or ``package:NAME/PATH``; its weights are never fetched.

    Raises:
        StageError: it cannot be found or read.
    """
    tokenizers = require("tokenizers", extra="local", wanted_by=wanted_by)
    try:
        file = _file(name, wanted_by)
    except StageError as error:
        raise StageError(error.what, error.next_step, place="tokenizer") from error
    try:
        revision = commit_of(file.parent) or digest_of(file.parent, [file])
        return TokenCounter(tokenizers.Tokenizer.from_file(str(file)), revision)
    except Exception as error:  # the library raises bare Exception
        raise StageError(
            f"tokenizer: {file} cannot be read: {error_text(error)}", "copy or download it again"
        ) from error


def _file(name: str, wanted_by: str) -> Path:
    folder = locate(name, wanted_by=wanted_by, files=[TOKENIZER_FILE])
    if not (folder / TOKENIZER_FILE).is_file():
        raise StageError(
            f"{folder} holds no {TOKENIZER_FILE}",
            (
                "save the tokenizer in its fast form there (transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            ),
        )
    return folder / TOKENIZER_FILE


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
