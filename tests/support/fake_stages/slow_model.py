"""A real model that is slowed: its network sleeps before each pass, and tells what it was given."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Passes(list[int]):
    """The rows of each forward pass, in their order; ``begun`` are the times."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[float] = []
        self.first = threading.Event()


@contextmanager
def slowed(loaded: Any, seconds: float = 0.0) -> Iterator[Passes]:
    """The passes of a loaded model, each of whose rows takes so many seconds more."""
    passes = Passes()

    def before(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        rows = len(options["input_ids"])
        passes.append(rows)
        passes.begun.append(time.monotonic())
        passes.first.set()
        time.sleep(seconds * rows)

    hook = loaded.network.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()
