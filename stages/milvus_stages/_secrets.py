"""Secrets: taken from the environment, and kept out of messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from milvus_pipeline import StageError

_SHORTEST: Final = 8
"""Characters of a secret or a text that give it away; shorter pieces are in any message by chance."""

_WINDOW: Final = 14
"""Letters and digits in a row of a document that a message may not share with it. Found in steps of half a window."""

_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|[nrtfv])")

_SECRET_NAME: Final = re.compile(r"auth|cookie|credential|key|passw|secret|signature|token", re.IGNORECASE)


def check_variable(name: str) -> str:
    """The name of an environment variable.

    Raises:
        ValueError: it cannot be one. The message does not say what it is instead: most likely the secret itself.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
        raise ValueError(
            "must be the name of an environment variable (letters, digits and underscores, no digit first); write the "
            "name, not the secret"
        )
    return name


VariableName = Annotated[str, AfterValidator(check_variable)]
"""A field that names an environment variable."""


class FromEnv(BaseModel):
    """A value that is taken from an environment variable when the stage opens: ``{env: NAME}``."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    env: Annotated[VariableName, Field(description="Name of the environment variable.")]


def names_a_secret(name: str) -> bool:
    """Whether what goes by this name (``api-key``, ``Authorization``) is most likely a secret."""
    return _SECRET_NAME.search(name) is not None


def secret_from(names: Sequence[str], purpose: str, *, words: bool = False) -> str:
    """The value of the first of these environment variables that is set, without blanks around it.

    Args:
        names: at least one.
        purpose: what it is for, to lead the message.
        words: it may hold blanks inside (``Bearer ...``).

    Raises:
        StageError: none is set, or the value cannot be sent in a header of HTTP. The message does not hold it.
    """
    name = next((name for name in names if os.environ.get(name, "").strip()), None)
    if name is None:
        empty = [name for name in names if name in os.environ]
        state = f"{empty[0]} is empty" if empty else f"{' or '.join(names)} is not set"
        raise StageError(f"{purpose}: the environment variable {state}; set it before the stage opens")
    value = os.environ[name].strip()
    if not re.fullmatch(r"[ -~]+" if words else r"[!-~]+", value):
        raise StageError(
            f"{purpose}: the value of the environment variable {name} holds blanks, line breaks or characters that are "
            "not ASCII, so it cannot be what is meant; copy it again"
        )
    return value


def without_secrets(message: str, secrets: Iterable[str]) -> str:
    """The message with every piece of a secret that gives it away, however it is set, replaced by ``[key]``."""
    for secret in secrets:
        if len(secret) < _SHORTEST:
            message = re.sub(re.escape(secret), "[key]", message, flags=re.IGNORECASE) if secret else message
            continue
        # Without blanks and in lower case; each character with its place in the message.
        solid = [(letter, at) for at, letter in enumerate(message) if not letter.isspace()]
        flat = "".join(letter.lower()[0] for letter, _ in solid)
        known = "".join(letter.lower()[0] for letter in secret if not letter.isspace())
        pieces = {known[at : at + _SHORTEST] for at in range(len(known) - _SHORTEST + 1)}
        letters = list(message)
        for first in range(len(flat) - _SHORTEST + 1):
            if flat[first : first + _SHORTEST] in pieces:
                start, end = solid[first][1], solid[first + _SHORTEST - 1][1] + 1
                letters[start:end] = "\0" * (end - start)
        message = re.sub("\0+", "[key]", "".join(letters))
    return message


def repeats(message: str, texts: Iterable[str]) -> bool:
    """Whether the message repeats one of the texts, or a part of it that is long enough to be no coincidence.

    Blanks, punctuation and upper case do not count, nor do the escapes that quoting puts into a text.
    """
    messages = {_letters(message), _letters(_ESCAPE.sub(_unescaped, message))}
    for text in texts:
        flat = _letters(text)
        if flat and len(" ".join(text.split())) >= _SHORTEST and any(flat in each for each in messages):
            return True
        if any(_share(each, flat) for each in messages):
            return True
    return False


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else " "


def _share(message: str, text: str) -> bool:
    """Whether both have a stretch of ``_WINDOW`` characters in common."""
    # It holds one of these pieces of half its length; only then look closer.
    step = _WINDOW // 2
    for at in range(0, len(message) - step + 1, step):
        if message[at : at + step] in text:
            starts = range(max(0, at - step), min(at, len(message) - _WINDOW) + 1)
            if any(message[start : start + _WINDOW] in text for start in starts):
                return True
    return False
