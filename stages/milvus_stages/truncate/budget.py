"""The budget of tokens and characters, and the tokenizer that measures texts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from milvus_pipeline import StageError
from milvus_pipeline.plugin import error_text, require
from milvus_stages.local.files import Origin, file_error, locate, locate_here

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_TOKENIZER_FILE = "tokenizer.json"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenCounter:
    """A tokenizer that measures and cuts texts, without special tokens. It never changes, so threads may share it.

    Args:
        tokenizer: as read from its file.
        revision: of the file: the commit of a hub snapshot, or a digest.
    """

    def __init__(self, tokenizer: Tokenizer, revision: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.revision = revision
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        """Return the number of tokens of the text."""
        return len(self._encoded(text))

    def prefix(self, text: str, limit: int) -> str:
        """Return the longest prefix of the text that ends at a token's end and has at most ``limit`` tokens.

        It is cut at the tokenizer's character offsets, not decoded, so it is a true prefix.
        """
        encoding = self._encoded(text)
        if len(encoding) <= limit:
            return text
        offsets = encoding.offsets
        for kept in range(limit, 0, -1):
            end = offsets[kept - 1][1]
            # One character may be several tokens (the bytes of an emoji); it is kept whole or not at all.
            if offsets[kept][0] < end:
                continue
            # Some tokenizers split a prefix differently on its own and within the whole text.
            if self.count(text[:end]) <= limit:
                return text[:end]
        return ""

    def _encoded(self, text: str) -> Encoding:
        # No tokenizer accepts a lone surrogate; replacing one character by one keeps the offsets right.
        return self._tokenizer.encode(_LONE_SURROGATE.sub("\ufffd", text), add_special_tokens=False)


def load_counter(name: str, *, wanted_by: str, download: bool = True) -> TokenCounter | None:
    """Load the tokenizer of a model. Weights are never fetched.

    Args:
        name: a hub id, a local folder, or ``package:NAME/PATH``.
        wanted_by: name of the stage, for messages.
        download: fetch it from the hub if necessary; otherwise return None if it is not on this machine.

    Raises:
        StageError: it cannot be found or read.
    """
    tokenizers = require("tokenizers", extra="local", wanted_by=wanted_by)
    try:
        find = locate if download else locate_here
        folder = find(name, wanted_by=wanted_by, file=_TOKENIZER_FILE)
        if folder is None:
            return None
        file = folder / _TOKENIZER_FILE
        if not file.is_file():
            fast = "save its fast form there (transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            raise file_error(folder, f"holds no {_TOKENIZER_FILE}", fast)
        revision = Origin(folder, [_TOKENIZER_FILE]).revision
        return TokenCounter(tokenizers.Tokenizer.from_file(str(file)), revision)
    except StageError as error:  # of a model's files, whose place is another field
        raise StageError(error.what, error.next_step, place="tokenizer") from error
    except Exception as error:  # the library raises bare Exception
        damaged = f"{name!r}: {_TOKENIZER_FILE} cannot be read: {error_text(error)}"
        raise StageError(damaged, "copy or download it again", place="tokenizer") from error


class Cost(NamedTuple):
    """What a text costs."""

    tokens: int
    chars: int


@dataclass
class Budget:
    """A budget that texts are charged to, one after the other.

    Args:
        tokens: limit of tokens; None for no limit.
        chars: limit of characters; None for no limit.
        per_text: tokens that each text costs beside its own.
        counter: counts tokens; None only without a limit of tokens.
        spent: what the texts have cost so far.
    """

    tokens: int | None
    chars: int | None
    per_text: int
    counter: TokenCounter | None
    spent: Cost = field(default_factory=lambda: Cost(0, 0))

    def cost(self, text: str) -> Cost:
        """Return what a text costs."""
        tokens = self.counter.count(text) if self.counter else 0
        return Cost(tokens + self.per_text, len(text))

    def take(self, cost: Cost) -> bool:
        """Charge the cost to the budget; return False if that much is not left."""
        tokens, chars = self.spent.tokens + cost.tokens, self.spent.chars + cost.chars
        if (self.tokens is not None and tokens > self.tokens) or (self.chars is not None and chars > self.chars):
            return False
        self.spent = Cost(tokens, chars)
        return True

    def prefix(self, text: str) -> str:
        """Return the longest prefix of the text that fits into what is left; empty if none does."""
        if self.chars is not None:
            text = word_prefix(text, max(0, self.chars - self.spent.chars))
        if self.tokens is not None and self.counter is not None:
            text = self.counter.prefix(text, max(0, self.tokens - self.spent.tokens - self.per_text))
        return text if text.strip() else ""


def word_prefix(text: str, limit: int) -> str:
    """Return at most ``limit`` characters of the text, cut between words if that keeps at least half of them.

    Scripts without spaces and very long words are cut at the limit.
    """
    if len(text) <= limit:
        return text
    cut = text[:limit]
    if not cut or text[limit].isspace():
        return cut.rstrip()
    start_of_last_word = next((end for end in range(limit, 0, -1) if cut[end - 1].isspace()), 0)
    whole_words = cut[:start_of_last_word].rstrip()
    return whole_words if 2 * len(whole_words) >= limit else cut
