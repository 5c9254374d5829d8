"""The ``params`` of a search: checked here, because the engines silently ignore a misspelt name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from milvus_pipeline import QueryError
from milvus_pipeline.plugin import kind_of, suggestion

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
_INTEGERS = {"nprobe": MAX_NPROBE, "ef": 32768, "search_list": 65535, "reorder_k": None}
"""Parameters that are positive integers, with the largest value."""


def parse_numbers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with numeric strings, which environment variables hold, as numbers."""
    return {name: _parse_number(value) if isinstance(value, str) else value for name, value in params.items()}


def _parse_number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_params(params: Mapping[str, Any], index_type: str, metric_type: str) -> None:
    """Check the parameters of a search.

    Args:
        params: as ``parse_numbers`` returns them.
        index_type: types that are not known here accept any parameter.
        metric_type: "IP", "COSINE" or "L2".

    Raises:
        QueryError: one is unknown or has a wrong value, or they do not go together.
    """
    if index_type in _KNOWN:
        known = _KNOWN[index_type] | _ANY_INDEX
        for name in params:
            if name not in known:
                raise QueryError(f"{index_type} has no parameter {name!r}", suggestion(name, known), place="params")
    for name, most in _INTEGERS.items():
        value = params.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
            bounds = f"from 1 to {most}" if most else "above 0"
            raise QueryError(f"must be an integer {bounds}, got {kind_of(value)}", place=f"params.{name}")
    for name in ("radius", "range_filter"):
        value = params.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise QueryError(f"must be a finite number, got {kind_of(value)}", place=f"params.{name}")
    if "range_filter" in params:
        if "radius" not in params:
            raise QueryError("needs `radius`, the other end of the range", place="params.range_filter")
        outer, inner = params["radius"], params["range_filter"]
        side, wrong = ("below", inner >= outer) if metric_type == "L2" else ("above", inner <= outer)
        if wrong:
            what = f"for {metric_type}, range_filter ({inner:g}) must be {side} radius ({outer:g})"
            raise QueryError(what, place="params")
