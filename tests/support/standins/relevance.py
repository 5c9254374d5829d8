"""The score that every stand-in gives: of the pair alone, the same everywhere, and sensible to look at."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence


def relevance(query: str, text: str) -> float:
    """How well a text answers a query: a number in (0, 1) that depends on nothing but the two strings.

    Mostly the share of the query's words that the text has; then the share of the text's words that the query has;
    then a small term that differs from text to text, so that two texts rarely tie.
    """
    asked, given = _words(query), _words(text)
    shared = len(asked & given)
    recall = shared / len(asked) if asked else 0.0
    precision = shared / len(given) if given else 0.0
    digest = hashlib.blake2b(f"{query}\0{text}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return 0.02 + 0.85 * recall + 0.08 * precision + 0.04 * int.from_bytes(digest) / 2**32


def ranking(query: str, texts: Sequence[str], top_k: int | None = None) -> list[tuple[int, float]]:
    """The index and relevance of each text, best first; equal ones in their order."""
    scores = [(index, relevance(query, text)) for index, text in enumerate(texts)]
    return sorted(scores, key=lambda pair: -pair[1])[:top_k]


def tokens(text: str) -> int:
    """How many tokens the stand-ins count for a text: one for every four characters begun."""
    return -(-len(text) // 4)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
