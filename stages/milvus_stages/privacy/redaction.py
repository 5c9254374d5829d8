"""Keep keys, and the texts of a query, out of messages.

A message of ours repeats nothing of a server's words but codes and identifiers. Free text is kept only where a program
reads it (``ServiceError.detail``, the cause of an error), and only if it shares no piece with a key or a text. Pieces
are compared by letters and digits alone, as they are written and with URL, HTML, JSON and base64 encodings undone.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Final
from urllib.parse import unquote
from urllib.request import getproxies

_KEY_PIECE: Final = 8
"""Bytes in a row of a key that give it away. A shorter key counts as a whole, from 4 bytes on."""

_TEXT_PIECE: Final = 14
"""Bytes in a row of a text that no message has by chance: 14 Latin letters, or 5 Chinese characters. A shorter text
counts as a whole, from 8 bytes on."""

_SHORTEST_KEY: Final = 4
_SHORTEST_TEXT: Final = 8
_MOST_TEXT: Final = 2**22
"""Bytes of texts that are searched, which takes 0.1 s at most; if a query has more, no free text is kept."""

_LONGEST: Final = 300
"""Characters of a foreign text that are kept."""

_LONGEST_ERROR: Final = 2400
"""Characters of a foreign error that are searched; a longer one most likely repeats its input."""

_NOT_ALNUM: Final = bytes(code for code in range(128) if not chr(code).isalnum())
_JSON_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})|\\[nrtbf]")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{12,}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SCHEME: Final = re.compile(r"(bearer|basic|token)(\s+|$)", re.IGNORECASE)


class Private:
    """The keys and texts that no message may repeat.

    Args:
        secrets: keys, passwords, values of secret headers.
        texts: gives the texts of a query. Called once at most, when the first message is checked.
    """

    def __init__(self, secrets: Iterable[str] = (), texts: Callable[[], Iterable[str]] = tuple) -> None:
        self._secrets = tuple(secrets)
        self._given_texts = texts

    def clean(self, text: str) -> str:
        """Return the beginning of a free text on one line, or "" if it repeats a key or a text."""
        line = " ".join(text[: 4 * _LONGEST].split())[:_LONGEST]
        line = "".join(sign if sign.isprintable() else "\ufffd" for sign in line)
        return "" if self.repeated_by(line) else line

    def token(self, value: str | None) -> str | None:
        """Return a code or an identifier, or None if the value may be anything else."""
        if value is None or not _TOKEN.fullmatch(value) or self.repeated_by(value):
            return None
        return value

    def repeated_by(self, message: str) -> bool:
        """Return whether the message shares a piece with a key or a text."""
        return any(self._keys.in_message(flat) or self._texts.in_message(flat) for flat in _decoded_forms(message))

    @cached_property
    def _keys(self) -> _Pieces:
        keys = (part for secret in self._secrets for part in _key_parts(secret.strip()))
        return _Pieces(keys, _KEY_PIECE, _SHORTEST_KEY)

    @cached_property
    def _texts(self) -> _Pieces:
        return _Pieces(self._given_texts(), _TEXT_PIECE, _SHORTEST_TEXT)


class _Pieces:
    """Pieces of keys or texts.

    Args:
        texts: the keys or texts.
        size: bytes in a row that make a piece.
        shortest: bytes from which on a text that is shorter than a piece counts as a whole.
    """

    def __init__(self, texts: Iterable[str], size: int, shortest: int) -> None:
        flat = {_flat(text) for text in texts}
        self._size = size
        self._short = [text for text in flat if shortest <= len(text) < size]
        self._long = b"\0".join(text for text in flat if len(text) >= size)

    def in_message(self, flat: bytes) -> bool:
        """Return whether a message, as ``_flat`` returns it, has one of the pieces."""
        if len(self._long) > _MOST_TEXT or any(text in flat for text in self._short):
            return True
        half = self._size // 2  # a piece anywhere in the message holds one of the blocks of this size
        blocks = [at for at in range(0, len(flat) - half + 1, half) if flat[at : at + half] in self._long]
        starts = {start for at in blocks for start in range(max(0, at + half - self._size), at + 1)}
        return any(
            start + self._size <= len(flat) and flat[start : start + self._size] in self._long for start in starts
        )


def chain_is_clean(error: BaseException, private: Private) -> bool:
    """Return whether nothing that a traceback prints of the error, and of what led to it, repeats a key or a text."""
    chain = [error]
    for current in chain:  # which grows
        try:
            printed = "\n".join([str(current), repr(current), *map(str, getattr(current, "__notes__", ()))])
        except Exception:  # its own __str__ fails
            return False
        if len(printed) > _LONGEST_ERROR or private.repeated_by(printed):
            return False
        before = [current.__cause__, current.__context__]
        before += current.exceptions if isinstance(current, BaseExceptionGroup) else ()
        chain += [each for each in before if each is not None and each not in chain]
    return True


def proxy_secrets() -> tuple[str, ...]:
    """Return the passwords of the proxies that the environment names, as they are written and as they are sent."""
    found: list[str] = []
    for proxy in getproxies().values():  # not urlsplit, which refuses what is not a valid URL
        user, _, password = proxy.rpartition("@")[0].rpartition("//")[2].partition(":")
        if password:
            plain = unquote(password)
            found += [password, plain, base64.b64encode(f"{unquote(user)}:{plain}".encode()).decode()]
    return tuple(dict.fromkeys(found))


def _flat(text: str) -> bytes:
    """Return letters and digits in lower case, in UTF-8; other characters outside ASCII stay."""
    return text.casefold().encode("utf-8", "replace").translate(None, _NOT_ALNUM)


def _key_parts(secret: str) -> Iterator[str]:
    """Yield the secret without the scheme before it, and the user and password that Basic packs."""
    scheme = _SCHEME.match(secret)
    key = secret[scheme.end() :] if scheme else secret
    yield key
    if scheme and scheme[1].lower() == "basic":
        for plain in _unpacked(key):
            yield from (plain, plain.partition(":")[2])


def _decoded_forms(message: str) -> Iterator[bytes]:
    """Yield the message, the message with escapes undone, and what is base64 in either; all as ``_flat`` returns it."""
    plain = _JSON_ESCAPE.sub(
        lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", unquote(html.unescape(message))
    )
    for form in {message, plain}:
        yield _flat(form)
        yield from map(_flat, _unpacked(form))


def _unpacked(text: str) -> Iterator[str]:
    """Yield what runs of base64 in the text hold."""
    for match in _BASE64.finditer(text):
        run = match[0].replace("-", "+").replace("_", "/")
        try:
            yield base64.b64decode(run + "A" * (-len(run) % 4)).decode("utf-8", "replace")
        except binascii.Error:
            continue
