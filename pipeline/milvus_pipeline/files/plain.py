"""Plain data: what JSON can hold, made of any value, and written as strict JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_UNSAFE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
"""Characters that JSON allows in a string but that some readers take for a line break, and lone surrogates, which
UTF-8 cannot encode."""


def _converted(value: Any) -> Any:
    """Return dataclasses as mappings, NumPy data as lists and numbers, NaN and infinities as None, the rest as text.

    The text has no memory address in it, so that the same data gives the same JSON in every process.
    """
    if isinstance(value, float):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    return plain(value.tolist()) if hasattr(value, "tolist") else _ADDRESS.sub("", str(value))


def plain(value: Any, other: Callable[[Any], Any] = _converted) -> Any:
    """Return the value as plain data: mappings with string keys, lists, strings, finite numbers, booleans, None.

    Sets become lists in an order that is the same in every process.

    Args:
        value: any value; a plugin may have put anything into a report.
        other: converts what JSON has no form for, NaN and infinities included.
    """
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner, other) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, other) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(inner, other) for inner in value), key=json.dumps)
    return other(value)


def json_text(data: Any, indent: int | None = None) -> str:
    """Return the data as strict JSON; what JSON does not know is converted by ``plain``."""
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError):
        return json.dumps(plain(data), ensure_ascii=False, allow_nan=False, indent=indent)


def json_line(data: Any) -> str:
    """Return the data as strict JSON on one line, with its line break. UTF-8 can encode it."""
    line = json_text(data)
    if not line.isascii():
        line = _UNSAFE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", line)
    return line + "\n"
