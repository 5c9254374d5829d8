"""Secrets: taken from the environment, and kept out of configurations and messages."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from milvus_pipeline import StageError

_SHORTEST: Final = 8
"""Characters of a secret or a text that give it away; shorter pieces are in any message by chance."""

_WINDOW: Final = 14
"""Letters and digits in a row of a document that a message may not share with it. Found in steps of half a window."""

_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|[nrtfv])")

_SECRET_NAME: Final = re.compile(r"auth|cookie|credential|key|passw|secret|signature|token", re.IGNORECASE)
_HARMLESS: Final = re.compile(r"tokeni[sz]\w*|keywords?", re.IGNORECASE)
_SECRET_IN_URL: Final = re.compile(r"://[^/?#\s]*@|[?&][^=&]*(key|token|secret|passw|auth)[^=&]*=", re.IGNORECASE)


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

    model_config = ConfigDict(
        title="A value from the environment", frozen=True, extra="forbid", hide_input_in_errors=True
    )

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


# -- plain data that a user writes for others to read ----------------------------------------------------------------


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of arguments that are plain data, in which ``{env: NAME}`` stands for secrets, on any level.

    Raises:
        ValueError: one is no plain data, or a secret itself. The message says where it stands and does not repeat it.
    """
    return {name: _plain(value, name, _secret(name)) for name, value in arguments.items()}


def resolved_arguments(
    arguments: Mapping[str, Any], place: str, needed_by: str
) -> tuple[dict[str, Any], frozenset[str]]:
    """What ``plain_arguments`` gave with the values of environment variables in it, and those values.

    Args:
        arguments: plain data.
        place: the field that holds them, to lead the message.
        needed_by: who needs the values, to end the message: ``the server``.

    Raises:
        StageError: a variable is not set, or blank.
    """
    secrets: set[str] = set()
    resolved = {name: _resolved(value, f"{place}.{name}", needed_by, secrets) for name, value in arguments.items()}
    return resolved, frozenset(secrets)


def environment(name: str) -> str:
    """The value of an environment variable without blanks around it; empty where it is not set."""
    return os.environ.get(name, "").strip()


def _plain(value: Any, place: str, secret: str | None) -> Any:
    """A copy of a value; ``secret`` is the name that makes it a secret, None where none does."""
    if isinstance(value, FromEnv):
        return {"env": value.env}
    if isinstance(value, Mapping) and set(value) == {"env"}:
        variable = value["env"]
        if not isinstance(variable, str):
            raise ValueError(f"{place}: env must be the name of an environment variable; write the name, not the key")
        try:
            return {"env": check_variable(variable)}
        except ValueError as error:
            raise ValueError(f"{place}: env {error}") from None
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ValueError(f"{place}: the keys of a mapping must be text")
        return {name: _plain(own, f"{place}.{name}", _secret(name) or secret) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own, f"{place}[{number}]", secret) for number, own in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{place}: must be plain data (text, finite numbers, true or false, lists, mappings)")
    counted = not isinstance(value, str) and secret is not None and "tokens" in secret.lower()
    if (secret is not None and not counted) or (isinstance(value, str) and _SECRET_IN_URL.search(value)):
        raise ValueError(
            f"{place}: looks like a secret, which is not written here; put it into an environment variable and write "
            "{env: NAME} instead"
        )
    return value


def _secret(name: str) -> str | None:
    """The name, where what goes by it is most likely a secret."""
    return name if names_a_secret(_HARMLESS.sub("", name)) else None


def _resolved(value: Any, place: str, needed_by: str, secrets: set[str]) -> Any:
    if isinstance(value, dict) and set(value) == {"env"}:
        given = environment(value["env"])
        if not given:
            raise StageError(
                f"{place}: the environment variable {value['env']} is not set, or blank; set it to the value that "
                f"{needed_by} needs"
            )
        secrets.add(given)
        return given
    if isinstance(value, dict):
        return {name: _resolved(own, f"{place}.{name}", needed_by, secrets) for name, own in value.items()}
    if isinstance(value, list):
        return [_resolved(own, f"{place}[{number}]", needed_by, secrets) for number, own in enumerate(value)]
    return value


# -- messages --------------------------------------------------------------------------------------------------------


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
