"""Texts from elsewhere, fit to be shown: on a terminal, which they shall not steer, or on a page."""

from __future__ import annotations

import unicodedata

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They turn the order of what follows, by which a text can pass for another (Unicode TR36, 2.3)."""


def printable(text: str) -> str:
    """The text with a replacement sign for every control character: input shall not steer the terminal.

    Other invisible signs stay, as scripts and emoji need them: the joiners of Persian words and of families, say.
    """
    return "".join(sign if sign.isprintable() or _is_format(sign) else "\ufffd" for sign in text)


def _is_format(sign: str) -> bool:
    return unicodedata.category(sign) == "Cf" and sign not in _BIDI_CONTROLS
