"""What differs between two pieces of plain data, place by place, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from milvus_pipeline.errors import shown


def differences(was: Any, now: Any, place: str = "") -> Iterator[str]:
    """Each place at which two pieces of plain data differ: ``stages[1].limit: was 100, is 50``.

    Args:
        was: mappings, lists, texts, numbers.
        now: the same later.
        place: what leads every place.
    """
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*was, *now]):
            inner = f"{place}.{key}" if place else str(key)
            if key not in now:
                yield f"{inner}: was {shown(was[key])}, is not set"
            elif key not in was:
                yield f"{inner}: was not set, is {shown(now[key])}"
            else:
                yield from differences(was[key], now[key], inner)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for position, (before, after) in enumerate(zip(was, now, strict=True)):
            yield from differences(before, after, f"{place}[{position}]")
    elif isinstance(was, list) and isinstance(now, list):
        yield f"{place}: had {len(was)} entries, has {len(now)}"
        for position, (before, after) in enumerate(zip(was, now, strict=False)):
            yield from differences(before, after, f"{place}[{position}]")
    elif was != now or isinstance(was, bool) != isinstance(now, bool):
        yield f"{place}: was {shown(was)}, is {shown(now)}"
