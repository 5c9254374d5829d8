"""What no message may repeat: keys, and the texts of a query, however a service sets them.

Texts and messages are compared by their letters and digits alone, as they stand and as they read once their escapes
are undone. The texts of a query, of which there may be thousands, are prepared once, when the first message is looked
at.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Final
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import getproxies

SECRET_LEFT_OUT: Final = "(the service's message repeats a secret and is left out)"  # noqa: S105 - none
"""Stands for a message in which a secret is so written that it cannot be cut out."""

_FEWEST: Final = 4
"""Characters of a secret. A shorter value from the environment, a digit perhaps, would be found in every message."""

_LONGEST_SAID: Final = 2400
"""Characters of a foreign error that are looked at; what says more most likely repeats its input."""

_PIECE: Final = 8
"""Characters in a row of a secret that give it away; fewer are in a message by chance."""

_HEX_PIECE: Final = 2 * _PIECE

_TEXT: Final = 8
"""Characters of a whole text that give it away; a dense letter counts twice."""

_LETTER: Final = 3
_DENSE_LETTER: Final = 7
_STRETCH: Final = 42
"""What the letters of a stretch that a message shares with a text weigh: 14 of Latin script, or 6 dense ones."""

_DENSE: Final = re.compile(r"[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
"""Letters that stand for a syllable or a word: Chinese, Japanese, Korean."""

_BLOCK: Final = 8
_STEP: Final = 4
"""Every second half of a block another begins: 14 bytes in a row hold at least one whole."""

_SPARSE: Final = 16
"""Places in the table for each block: what is there by chance stays rare."""

_BETWEEN: Final = bytes(code for code in range(1, 128) if not chr(code).isalnum())
_ODD: Final = re.compile(r"[^\w\0]+|_+")

_CHARACTER: Final = re.compile(r".", re.DOTALL)
_ESCAPES: Final = r"(?:%[0-9A-Fa-f]{2})+|(?:\\x[0-9A-Fa-f]{2})+|(?:\\u[0-9A-Fa-f]{4})+|\\[nrtfv]|&#?\w{1,31};"
_ESCAPE: Final = re.compile(_ESCAPES)
_TOKEN: Final = re.compile(rf"{_ESCAPES}|.", re.DOTALL)
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/_-]{12,}")
_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2}){8,}")

_SCHEMES: Final = ("bearer", "basic", "token")
_SCHEME: Final = re.compile(rf"({'|'.join(_SCHEMES)})\s+", re.IGNORECASE)


class Hidden:
    """What messages must not repeat, prepared when the first of them is looked at, and kept.

    Args:
        secrets: keys and the like; those of fewer than 4 characters are not looked for.
        texts: gives the texts of a query. Called once at most.
    """

    def __init__(self, secrets: Iterable[str] = (), texts: Callable[[], Iterable[str]] = tuple) -> None:
        self._secrets = tuple(secrets)
        self._texts = texts

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def redacted(self, message: str) -> str | None:
        """The message with ``[key]`` for each piece of a secret; None where one is so written that it stays."""
        keys = self._keys
        if not keys:
            return message
        places = list(keys.places(message))
        if places:
            marked = list(message.replace("\0", " "))
            for start, end in places:
                marked[start:end] = "\0" * (end - start)
            message = re.sub("\0+", "[key]", "".join(marked))
        # What is left may still be read from it.
        return None if any(keys.stand_in(form) for form in _forms(message)[1:]) else message

    def repeated_by(self, message: str) -> bool:
        """Whether the message repeats a text, or a part of it that is long enough to be no coincidence."""
        return any(self._known.stand_in(form) for form in _forms(message))

    @cached_property
    def _keys(self) -> _Keys:
        return _Keys(self._secrets)

    @cached_property
    def _known(self) -> _Texts:
        return _Texts(self._texts())


def without_secrets(message: str, secrets: Iterable[str]) -> str:
    """The message without pieces of a secret, or words in its place where they cannot be cut out."""
    redacted = Hidden(secrets).redacted(message)
    return SECRET_LEFT_OUT if redacted is None else redacted


def chain_is_clean(error: BaseException, hidden: Hidden) -> bool:
    """Whether nothing that a traceback prints of the error, and of what led to it, has a secret or a text."""
    return all(_is_clean(each, hidden) for each in _chain(error))


def repeats(message: str, texts: Iterable[str]) -> bool:
    """``Hidden.repeated_by`` for one message alone."""
    return Hidden((), lambda: texts).repeated_by(message)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that its traceback would print."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        own = waiting.pop()
        if own is not None and id(own) not in seen:
            seen.add(id(own))
            yield own
            waiting += [own.__cause__, own.__context__]
            waiting += own.exceptions if isinstance(own, BaseExceptionGroup) else ()


def _is_clean(error: BaseException, hidden: Hidden) -> bool:
    try:
        said = "\n".join([str(error), repr(error), *map(str, getattr(error, "__notes__", ()))])
    except Exception:  # one whose own __str__ fails
        return False
    return len(said) <= _LONGEST_SAID and hidden.redacted(said) == said and not hidden.repeated_by(said)


def proxy_secrets() -> tuple[str, ...]:
    """The passwords of the proxies that the environment names, as they stand, and as they are sent."""
    found: list[str] = []
    for proxy in getproxies().values():
        try:
            # Before the user stands a scheme, or nothing.
            parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
            user, password = parts.username or "", parts.password
        except ValueError:
            user, _, password = proxy.rpartition("@")[0].rpartition("/")[2].partition(":")
        if password:
            plain = unquote(password)
            found += [password, plain, base64.b64encode(f"{unquote(user)}:{plain}".encode()).decode()]
    return tuple(dict.fromkeys(found))


# -- other spellings of a message ------------------------------------------------------------------------------------


def _forms(message: str) -> list[str]:
    """The message, what it reads with its escapes undone once, twice and thrice, and what is encoded in any."""
    forms = [message]
    for _ in range(3):
        decoded = _decoded(forms[-1])
        if decoded == forms[-1]:
            break
        forms.append(decoded)
    return forms + [found for form in forms for found in _unpacked(form)]


def _decoded(text: str) -> str:
    """The text with its escapes undone: those of URLs, of JSON, of Python and of HTML."""
    return _ESCAPE.sub(lambda match: _unescaped(match[0]), text)


def _unescaped(escape: str) -> str:
    if escape.startswith("&"):
        return html.unescape(escape)
    if escape.startswith("\\u"):
        units = bytes.fromhex(escape.replace("\\u", ""))
        return units.decode("utf-16-be", "replace")  # two escapes may make one character
    if escape.startswith("\\x"):
        return _text_of(bytes.fromhex(escape.replace("\\x", "")))
    return _text_of(unquote_to_bytes(escape)) if escape.startswith("%") else " "


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unpacked(text: str) -> Iterator[str]:
    """What runs of base64 and of hexadecimal digits in the text hold."""
    for match in _HEX.finditer(text):
        yield bytes.fromhex(match[0]).decode("utf-8", "replace")
    for match in _ENCODED.finditer(text):
        run = match[0].replace("-", "+").replace("_", "/")
        try:
            yield base64.b64decode(run[: len(run) // 4 * 4]).decode("utf-8", "replace")
            if len(run) % 4 > 1:
                yield base64.b64decode(f"{run}{'=' * (-len(run) % 4)}").decode("utf-8", "replace")
        except binascii.Error:
            continue


# -- secrets ---------------------------------------------------------------------------------------------------------


class _Keys:
    """The pieces of secrets that give them away, in each way that they may be spelt."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._pieces: dict[int, set[str]] = {_PIECE: set(), _HEX_PIECE: set()}
        self._whole: list[re.Pattern[str]] = []
        for secret in {part for given in secrets for part in _parts(given.strip())}:
            if len(secret) >= _FEWEST:
                self._add(secret, _PIECE)
                for spelling, size in _spellings(secret):
                    self._add(spelling, size)

    def __bool__(self) -> bool:
        return bool(self._whole) or any(self._pieces.values())

    def places(self, message: str) -> Iterator[tuple[int, int]]:
        """Where pieces stand, as beginning and end; also such that are written with escapes."""
        for pattern in self._whole:
            yield from (match.span() for match in pattern.finditer(message))
        for token in (_CHARACTER, _TOKEN) if _ESCAPE.search(message) else (_CHARACTER,):
            for take in (_unspaced, _letters):
                yield from self._stretches(message, token, take)

    def stand_in(self, message: str) -> bool:
        """Whether any piece does."""
        return next(self.places(message), None) is not None

    def _add(self, spelling: str, size: int) -> None:
        plain = _letters(spelling)
        for known in {plain, _unspaced(spelling)}:
            self._pieces[size].update(known[at : at + size] for at in range(len(known) - size + 1))
        if len(plain) < size:
            self._whole.append(re.compile(re.escape(spelling), re.IGNORECASE))
            # With whatever between its letters, but not in the middle of a word or across words.
            if len(plain) >= _FEWEST and 2 * len(plain) > len(spelling):
                spaced = r"[\W_]*".join(map(re.escape, plain))
                self._whole.append(re.compile(rf"(?<![^\W_]){spaced}(?![^\W_])", re.IGNORECASE))

    def _stretches(self, message: str, token: re.Pattern[str], take: Callable[[str], str]) -> Iterator[tuple[int, int]]:
        flat: list[str] = []
        places: list[tuple[int, int]] = []
        for match in token.finditer(message):
            own = match[0]
            taken = take(own if len(own) == 1 else _unescaped(own))
            flat += taken
            places += [match.span()] * len(taken)
        letters = "".join(flat)
        for size, pieces in self._pieces.items():
            for first in range(len(letters) - size + 1 if pieces else 0):
                if letters[first : first + size] in pieces:
                    yield places[first][0], places[first + size - 1][1]


def _parts(secret: str) -> Iterator[str]:
    """The secret without the scheme that leads it, which is none; and what user and password it packs."""
    scheme = _SCHEME.match(secret)
    secret = secret[scheme.end() :] if scheme else secret
    if secret.lower() not in _SCHEMES:
        yield secret
    if scheme and scheme[1].lower() == "basic":
        for plain in _unpacked(secret):
            yield plain
            yield plain.partition(":")[2]


def _spellings(secret: str) -> Iterator[tuple[str, int]]:
    """Other ways to write a whole secret, each with the size of the pieces that give it away."""
    yield secret[::-1], _PIECE
    for text in (secret, f":{secret}", f"{secret}:"):
        packed = base64.b64encode(text.encode("utf-8", "replace")).decode().rstrip("=")
        yield packed, _PIECE
        yield packed.replace("+", "-").replace("/", "_"), _PIECE
    yield secret.encode("utf-8", "replace").hex(), _HEX_PIECE


def _letters(text: str) -> str:
    """Letters and digits only, in lower case and without accents."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    return "".join(filter(str.isalnum, text.casefold()))


def _unspaced(text: str) -> str:
    """What is visible, in lower case."""
    return "".join(text.casefold().split())


# -- texts -----------------------------------------------------------------------------------------------------------


class _Texts:
    """Texts, set up so that it is soon found that a message shares nothing with them.

    All are one run of bytes, and a table tells of a block of 8 bytes that it is nowhere in them, at a place that is a
    multiple of 4. A stretch is searched for only where the table does not rule it out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        each = list(texts)
        self._data = _flat("\0".join(text.replace("\0", "") for text in each))
        # Those that are found whole, since they are too short to share a stretch.
        self._short: set[bytes] = set()
        self._bare: set[str] = set()
        for text, flat in zip(each, self._data.split(b"\0"), strict=False):
            if len(flat) < _STRETCH and _weight(flat.decode("utf-8", "replace")) < _STRETCH:
                normal = _normal(text)
                if len(normal) + len(_DENSE.findall(normal)) >= _TEXT:
                    if len(flat) >= _FEWEST:
                        self._short.add(flat)
                    else:  # punctuation
                        self._bare.add(normal)
        self._size = _SPARSE * (len(self._data) // _STEP) | 1
        self._table = _table(self._data, self._size)

    def stand_in(self, message: str) -> bool:
        """Whether the message repeats a short text, or shares a stretch with a longer one."""
        flat = _flat(message.replace("\0", ""))
        if any(short in flat for short in self._short):
            return True
        if self._bare and any(bare in _normal(message) for bare in self._bare):
            return True
        known: dict[bytes, bool] = {}
        for window in _windows(flat.decode("utf-8", "replace")):
            stretch = window.encode()
            blocks = (stretch[at : at + _BLOCK] for at in range(_STEP))
            if any(self._has(block, known) for block in blocks) and stretch in self._data:
                return True
        return False

    def _has(self, block: bytes, known: dict[bytes, bool]) -> bool:
        if block not in known:
            listed = self._table[int.from_bytes(block, sys.byteorder) % self._size]
            known[block] = bool(listed) and block in self._data
        return known[block]


def _table(data: bytes, size: int) -> bytearray:
    """Which remainders the blocks of the data leave."""
    table = bytearray(size)
    for first in range(0, _BLOCK, _STEP):
        count = max(0, len(data) - first) // _BLOCK
        for block in memoryview(data)[first : first + count * _BLOCK].cast("Q"):
            table[block % size] = 1
    return table


def _flat(text: str) -> bytes:
    """Letters and digits only, without case, and the NULs between texts; in UTF-8."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = text.casefold()
    if not text.isascii():
        odd = [letter for letter in set(text) if not letter.isascii() and not letter.isalnum()]
        if len(odd) > _STRETCH:
            text = _ODD.sub("", text)
        for letter in odd:
            text = text.replace(letter, "")
    # At the speed of C, which counts where a query has megabytes.
    return text.encode("utf-8", "replace").translate(None, _BETWEEN)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _weight(letters: str) -> int:
    return sum(_DENSE_LETTER if _DENSE.match(letter) else _LETTER for letter in letters)


def _windows(letters: str) -> Iterator[str]:
    """The shortest stretches that weigh enough."""
    weights = [_DENSE_LETTER if _DENSE.match(letter) else _LETTER for letter in letters]
    start = total = 0
    for end, own in enumerate(weights):
        total += own
        while total - weights[start] >= _STRETCH:
            total -= weights[start]
            start += 1
        if total >= _STRETCH:
            yield letters[start : end + 1]
