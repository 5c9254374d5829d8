"""The ``params`` of a search: checked here, because the engines ignore a misspelt one without a word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from milvus_pipeline.plugin import short_repr

DEFAULT_NPROBE = 16
MAX_NPROBE = 65536

_IVF = frozenset({"nprobe", "max_empty_result_buckets"})
_KNOWN: dict[str, frozenset[str]] = {
    "FLAT": frozenset(),
    "IVF_FLAT": _IVF,
    "IVF_SQ8": _IVF,
    "IVF_PQ": _IVF,
    "HNSW": frozenset({"ef"}),
    "DISKANN": frozenset({"search_list"}),
    "SCANN": _IVF | {"reorder_k"},
}
_ANY_INDEX = frozenset({"radius", "range_filter", "level", "hints"})


def numbered(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with numeric texts, which environment variables give, as numbers."""
    return {name: _number(value) if isinstance(value, str) else value for name, value in params.items()}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _kind(value: Any) -> str:
    """A number as it is; of what should not stand there, and may be a secret, the kind."""
    if isinstance(value, bool | int | float):
        return short_repr(value)
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"


def problem(params: Mapping[str, Any], index_type: str, metric_type: str) -> str | None:
    """What is wrong with the parameters; None where nothing is.

    Args:
        params: as ``numbered`` gives them.
        index_type: kinds of index that are not known here take any parameter.
        metric_type: "IP", "COSINE" or "L2".
    """
    known = _KNOWN.get(index_type)
    for name in params:
        if known is not None and name not in known | _ANY_INDEX:
            near = get_close_matches(name, known | _ANY_INDEX, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known)) or 'none of its own'}"
            return f"params: {index_type} takes no {name!r}; {hint}"
    for name, most in (("nprobe", MAX_NPROBE), ("ef", 32768), ("search_list", 65535), ("reorder_k", None)):
        value = params.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
            bounds = f"from 1 to {most}" if most else "above 0"
            return f"params.{name}: must be a whole number {bounds}, is {_kind(value)}"
    return _range_problem(params, metric_type)


def _range_problem(params: Mapping[str, Any], metric_type: str) -> str | None:
    for name in ("radius", "range_filter"):
        value = params.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"params.{name}: must be a finite number, is {_kind(value)}"
    if "range_filter" in params:
        if "radius" not in params:
            return "params.range_filter: needs a `radius` too, the other end of the range"
        outer, inner = params["radius"], params["range_filter"]
        if metric_type == "L2" and inner >= outer:
            return f"params: for L2, range_filter ({inner:g}) must be below radius ({outer:g})"
        if metric_type != "L2" and inner <= outer:
            return f"params: for {metric_type}, range_filter ({inner:g}) must be above radius ({outer:g})"
    return None
