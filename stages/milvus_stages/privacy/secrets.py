"""Secrets are read from the environment, and kept out of configurations."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from milvus_pipeline import ConfigError, StageError

_SECRET_NAME: Final = re.compile(
    r"auth|bearer|cookie|credential|jwt|key|passw|secret|signature|subscription|token", re.IGNORECASE
)
_HARMLESS: Final = re.compile(r"tokeni[sz]\w*|keywords?", re.IGNORECASE)
_SECRET_IN_URL: Final = re.compile(r"://[^/?#\s]*@|[?&][^=&]*(key|token|secret|passw|auth)[^=&]*=", re.IGNORECASE)


def check_variable(name: Any) -> str:
    """Return the name of an environment variable.

    Raises:
        ConfigError: it is invalid. The message does not repeat it: most likely it is the secret itself.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
        raise ConfigError(
            "must be the name of an environment variable (letters, digits and underscores, no digit first)",
            "write the name, not the secret",
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


def read_variable(names: Sequence[str], place: str) -> str:
    """Return the value of the first of these environment variables that is set, without blanks around it.

    Raises:
        StageError: none is set.
    """
    value = next(filter(None, map(environment, names)), None)
    if value is None:
        what = f"the environment variable {' or '.join(names)} is not set or empty"
        raise StageError(what, "set it before the stage opens", place=place, reason_code="config")
    return value


def read_header_value(names: Sequence[str], place: str, *, blanks: bool = False) -> str:
    """Return ``read_variable`` for a value of an HTTP header.

    Args:
        names: at least one.
        place: of an error: what the value is for.
        blanks: whether it may contain blanks (``Bearer ...``).

    Raises:
        StageError: none is set, or the value cannot be sent. The message does not repeat it.
    """
    value = read_variable(names, place)
    if not re.fullmatch(r"[ -~]+" if blanks else r"[!-~]+", value):
        name = next(filter(environment, names))
        raise StageError(
            f"the value of the environment variable {name} contains blanks, line breaks or non-ASCII characters",
            "copy it again",
            place=place,
            reason_code="config",
        )
    return value


# -- arguments that are passed on to others ---------------------------------------------------------------


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of arguments that are plain data, with ``{env: NAME}`` in place of a secret, on any level.

    Raises:
        ValueError: a value is not plain data, or is a secret. The message says where it is and does not repeat it.
    """
    return _plain_mapping(arguments, "", None)


def resolved_arguments(arguments: Mapping[str, Any], place: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the result of ``plain_arguments`` with the values of environment variables in it, and those values.

    Args:
        arguments: plain data.
        place: the field that holds them, for messages.

    Raises:
        StageError: a variable is not set or blank.
    """
    secrets: set[str] = set()
    resolved = {name: _resolved(value, f"{place}.{name}", secrets) for name, value in arguments.items()}
    return resolved, frozenset(secrets)


def environment(name: str) -> str:
    """Return the value of an environment variable without blanks around it; empty if it is not set."""
    return os.environ.get(name, "").strip()


def is_reference(value: Any) -> bool:
    """Return whether a value is ``{env: NAME}``."""
    return isinstance(value, Mapping) and set(value) == {"env"}


def looks_secret(place: str) -> ConfigError:
    """Return the error of a value that looks like a secret, and is not repeated."""
    step = "put it into an environment variable and write {env: NAME} instead"
    return ConfigError(f"{place}: looks like a secret", step)


def _plain(value: Any, place: str, secret: str | None) -> Any:
    """Copy a value; ``secret`` is the name that makes it a secret, if there is one."""
    if isinstance(value, FromEnv):
        return {"env": value.env}
    if is_reference(value):
        try:
            return {"env": check_variable(value["env"])}
        except ConfigError as error:
            raise ConfigError(f"{place}: env {error.what}", error.next_step) from None
    if isinstance(value, Mapping):
        return _plain_mapping(value, f"{place}.", secret)
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{place}[{number}]", secret) for number, inner in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{place}: must be plain data (strings, finite numbers, true or false, lists, mappings)")
    is_count = not isinstance(value, str) and secret is not None and "tokens" in secret.lower()
    if (secret is not None and not is_count) or (isinstance(value, str) and _SECRET_IN_URL.search(value)):
        raise looks_secret(place)
    return value


def _plain_mapping(value: Mapping[str, Any], place: str, secret: str | None) -> dict[str, Any]:
    for name in value:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{place}the names must be non-empty strings")
    return {name: _plain(inner, f"{place}{name}", _secret(name) or secret) for name, inner in value.items()}


def _secret(name: str) -> str | None:
    """Return the name if its value is most likely a secret."""
    return name if names_a_secret(_HARMLESS.sub("", name)) else None


def _resolved(value: Any, place: str, secrets: set[str]) -> Any:
    if is_reference(value):
        secret = read_variable([value["env"]], place)
        secrets.add(secret)
        return secret
    if isinstance(value, dict):
        return {name: _resolved(inner, f"{place}.{name}", secrets) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, f"{place}[{number}]", secrets) for number, inner in enumerate(value)]
    return value
