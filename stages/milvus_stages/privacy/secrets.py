"""Secrets are read from the environment, and kept out of configurations."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from milvus_pipeline import StageError

_SECRET_NAME: Final = re.compile(
    r"auth|bearer|cookie|credential|jwt|key|passw|secret|signature|subscription|token", re.IGNORECASE
)
_HARMLESS: Final = re.compile(r"tokeni[sz]\w*|keywords?", re.IGNORECASE)
_SECRET_IN_URL: Final = re.compile(r"://[^/?#\s]*@|[?&][^=&]*(key|token|secret|passw|auth)[^=&]*=", re.IGNORECASE)


def check_variable(name: str) -> str:
    """Return the name of an environment variable.

    Raises:
        ValueError: it is invalid. The message does not repeat it: most likely it is the secret itself.
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
    """A value to be read from an environment variable when the stage opens: ``{env: NAME}``."""

    model_config = ConfigDict(
        title="A value from the environment", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    env: Annotated[VariableName, Field(description="Name of the environment variable.")]


def names_a_secret(name: str) -> bool:
    """Return whether a value of this name (``api-key``, ``Authorization``) is most likely a secret."""
    return _SECRET_NAME.search(name) is not None


def secret_from(names: Sequence[str], purpose: str, *, words: bool = False) -> str:
    """Return the value of the first of these environment variables that is set, without blanks around it.

    Args:
        names: at least one.
        purpose: what it is for, as the place of an error.
        words: it may contain blanks (``Bearer ...``).

    Raises:
        StageError: none is set, or the value cannot be sent in an HTTP header. The message does not repeat the value.
    """
    name = next(filter(environment, names), None)
    if name is None:
        empty = [name for name in names if name in os.environ]
        state = f"{empty[0]} is empty" if empty else f"{' or '.join(names)} is not set"
        what = f"the environment variable {state}"
        raise StageError(what, "set it before the stage opens", place=purpose, reason_code="config")
    value = environment(name)
    if not re.fullmatch(r"[ -~]+" if words else r"[!-~]+", value):
        raise StageError(
            f"the value of the environment variable {name} contains blanks, line breaks or non-ASCII characters",
            "copy it again",
            place=purpose,
            reason_code="config",
        )
    return value


# -- arguments that are passed on to others ---------------------------------------------------------------


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of arguments that are plain data, in which ``{env: NAME}`` stands for a secret, on any level.

    Raises:
        ValueError: a value is not plain data, or is a secret. The message says where it is and does not repeat it.
    """
    return {name: _plain(value, name, _secret(name)) for name, value in arguments.items()}


def resolved_arguments(
    arguments: Mapping[str, Any], place: str, needed_by: str
) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the result of ``plain_arguments`` with the values of environment variables in it, and those values.

    Args:
        arguments: plain data.
        place: the field that holds them, for messages.
        needed_by: what needs the values, for messages: ``the server``.

    Raises:
        StageError: a variable is not set or blank.
    """
    secrets: set[str] = set()
    resolved = {name: _resolved(value, f"{place}.{name}", needed_by, secrets) for name, value in arguments.items()}
    return resolved, frozenset(secrets)


def environment(name: str) -> str:
    """Return the value of an environment variable without blanks around it; empty if it is not set."""
    return os.environ.get(name, "").strip()


def _plain(value: Any, place: str, secret: str | None) -> Any:
    """Copy a value; ``secret`` is the name that makes it a secret, if there is one."""
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
            raise ValueError(f"{place}: the keys of a mapping must be strings")
        return {name: _plain(own, f"{place}.{name}", _secret(name) or secret) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own, f"{place}[{number}]", secret) for number, own in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{place}: must be plain data (strings, finite numbers, true or false, lists, mappings)")
    is_count = not isinstance(value, str) and secret is not None and "tokens" in secret.lower()
    if (secret is not None and not is_count) or (isinstance(value, str) and _SECRET_IN_URL.search(value)):
        raise ValueError(
            f"{place}: looks like a secret; put it into an environment variable and write {{env: NAME}} instead"
        )
    return value


def _secret(name: str) -> str | None:
    """Return the name if its value is most likely a secret."""
    return name if names_a_secret(_HARMLESS.sub("", name)) else None


def _resolved(value: Any, place: str, needed_by: str, secrets: set[str]) -> Any:
    if isinstance(value, dict) and set(value) == {"env"}:
        given = environment(value["env"])
        if not given:
            raise StageError(
                f"the environment variable {value['env']} is not set or blank",
                f"set it to the value that {needed_by} needs",
                place=place,
            )
        secrets.add(given)
        return given
    if isinstance(value, dict):
        return {name: _resolved(own, f"{place}.{name}", needed_by, secrets) for name, own in value.items()}
    if isinstance(value, list):
        return [_resolved(own, f"{place}[{number}]", needed_by, secrets) for number, own in enumerate(value)]
    return value
