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

_WINDOW: Final = 16
"""Characters of a document that a message may not share with it. Found in steps of half a window."""

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
    """The message with every piece of a secret that gives it away replaced by ``[key]``."""
    for secret in secrets:
        if len(secret) < _SHORTEST:
            message = message.replace(secret, "[key]") if secret else message
            continue
        pieces = {secret[at : at + _SHORTEST] for at in range(len(secret) - _SHORTEST + 1)}
        marked = [False] * len(message)
        for at in range(len(message) - _SHORTEST + 1):
            if message[at : at + _SHORTEST] in pieces:
                marked[at : at + _SHORTEST] = [True] * _SHORTEST
        kept = "".join("\0" if mark else letter for letter, mark in zip(message, marked, strict=True))
        message = re.sub("\0+", "[key]", kept)
    return message


def repeats(message: str, texts: Iterable[str]) -> bool:
    """Whether the message repeats one of the texts, or a part of it that is long enough to be no coincidence."""
    message = " ".join(message.split()).lower()
    step = _WINDOW // 2
    windows = [message[at : at + step] for at in range(0, len(message) - step + 1, step)]
    for text in texts:
        flat = " ".join(text.split()).lower()
        if len(flat) >= _SHORTEST and flat in message:
            return True
        # A part of 16 characters that both share holds one of these pieces of 8; only then look closer.
        for place, window in enumerate(windows):
            if window in flat and _shared(message, flat, place * step):
                return True
    return False


def _shared(message: str, text: str, at: int) -> bool:
    """Whether a stretch of ``_WINDOW`` characters of the message that holds the piece at ``at`` is in the text."""
    step = _WINDOW // 2
    starts = range(max(0, at - step), min(at, len(message) - _WINDOW) + 1)
    return any(message[start : start + _WINDOW] in text for start in starts)
