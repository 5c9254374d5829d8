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
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

KEY_PIECE: Final = 8
"""Bytes in a row of a key that give it away. A shorter key counts as a whole, from 4 characters on."""

TEXT_PIECE: Final = 14
"""Bytes in a row of a text that no message has by chance: 14 Latin letters, or 5 Chinese characters. A shorter text
counts as a whole, from 8 bytes on."""

_SHORTEST_KEY: Final = 4
_SHORTEST_TEXT: Final = 8
_BLOCK: Final = TEXT_PIECE // 2  # any piece holds a whole block of the message
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
        self.has_secrets = bool(self._secrets)
        self._given_texts = texts

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def clean(self, text: str) -> str:
        """Return the beginning of a free text on one line, or "" if it repeats a key or a text."""
        line = " ".join(text[: 4 * _LONGEST].split())[:_LONGEST]
        line = "".join(sign if sign.isprintable() else "\ufffd" for sign in line)
        return "" if self.repeated_by(line) else line

    def token(self, value: Any) -> str | None:
        """Return a code or an identifier, or None if the value may be anything else."""
        if not isinstance(value, str) or not _TOKEN.fullmatch(value) or self.repeated_by(value):
            return None
        return value

    def repeated_by(self, message: str) -> bool:
        """Return whether the message shares a piece with a key or a text."""
        return any(self._has_key(form) or self._has_text(form) for form in _decoded_forms(message))

    def _has_key(self, message: str) -> bool:
        pieces, whole = self._key_pieces
        flat = _flat(message)
        return not pieces.isdisjoint(_windows(flat, KEY_PIECE)) or any(key in message.casefold() for key in whole)

    def _has_text(self, message: str) -> bool:
        long, short = self._texts
        flat = _flat(message)
        if len(long) > _MOST_TEXT or any(text in flat for text in short):
            return True
        return any(
            flat[at : at + _BLOCK] in long
            and any(
                piece in long
                for piece in _windows(flat[max(0, at + _BLOCK - TEXT_PIECE) : at + TEXT_PIECE], TEXT_PIECE)
            )
            for at in range(0, len(flat) - _BLOCK + 1, _BLOCK)
        )

    @cached_property
    def _key_pieces(self) -> tuple[frozenset[bytes], tuple[str, ...]]:
        """The pieces of all long keys, and the short keys."""
        keys = {part for secret in self._secrets for part in _key_parts(secret.strip())}
        pieces = {piece for key in keys for piece in _windows(_flat(key), KEY_PIECE)}
        short = [key.casefold() for key in keys if len(key) >= _SHORTEST_KEY and len(_flat(key)) < KEY_PIECE]
        return frozenset(pieces), tuple(short)

    @cached_property
    def _texts(self) -> tuple[bytes, frozenset[bytes]]:
        """All long texts in one string, apart by NUL, and the short ones."""
        flat = [_flat(text) for text in self._given_texts()]
        short = {text for text in flat if _SHORTEST_TEXT <= len(text) < TEXT_PIECE}
        return b"\0".join(text for text in flat if len(text) >= TEXT_PIECE), frozenset(short)


def chain_is_clean(error: BaseException, private: Private) -> bool:
    """Return whether nothing that a traceback prints of the error, and of what led to it, repeats a key or a text."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        try:
            printed = "\n".join([str(current), repr(current), *map(str, getattr(current, "__notes__", ()))])
        except Exception:  # its own __str__ fails
            return False
        if len(printed) > _LONGEST_ERROR or private.repeated_by(printed):
            return False
        waiting += [current.__cause__, current.__context__]
        waiting += current.exceptions if isinstance(current, BaseExceptionGroup) else ()
    return True


def proxy_secrets() -> tuple[str, ...]:
    """Return the passwords of the proxies that the environment names, as they are written and as they are sent."""
    found: list[str] = []
    for proxy in getproxies().values():
        try:
            # A scheme before the user is optional.
            parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
            user, password = parts.username or "", parts.password
        except ValueError:
            user, _, password = proxy.rpartition("@")[0].rpartition("/")[2].partition(":")
        if password:
            plain = unquote(password)
            found += [password, plain, base64.b64encode(f"{unquote(user)}:{plain}".encode()).decode()]
    return tuple(dict.fromkeys(found))


def _flat(text: str) -> bytes:
    """Return letters and digits in lower case, in UTF-8; other characters outside ASCII stay."""
    return text.casefold().encode("utf-8", "replace").translate(None, _NOT_ALNUM)


def _windows(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(len(data) - size + 1))


def _key_parts(secret: str) -> Iterator[str]:
    """Yield the secret without the scheme before it, and the user and password that Basic packs."""
    scheme = _SCHEME.match(secret)
    key = secret[scheme.end() :] if scheme else secret
    yield key
    if scheme and scheme[1].lower() == "basic":
        for plain in _unpacked(key):
            yield from (plain, plain.partition(":")[2])


def _decoded_forms(message: str) -> Iterator[str]:
    """Yield the message, the message with escapes undone, and what is base64 in either."""
    plain = _JSON_ESCAPE.sub(
        lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", unquote(html.unescape(message))
    )
    for form in {message, plain}:
        yield form
        yield from _unpacked(form)


def _unpacked(text: str) -> Iterator[str]:
    """Yield what runs of base64 in the text hold."""
    for match in _BASE64.finditer(text):
        run = match[0].replace("-", "+").replace("_", "/")
        try:
            yield base64.b64decode(run + "A" * (-len(run) % 4)).decode("utf-8", "replace")
        except binascii.Error:
            continue
