"""A real model whose network sleeps before each pass and records what it was given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Passes(list[int]):
    """The rows of each forward pass, in their order; ``first`` is set when the first begins."""

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.Event()


@contextmanager
def slowed(loaded: Any, seconds: float = 0.0, sleep: Callable[[float], None] = time.sleep) -> Iterator[Passes]:
    """The passes of a loaded model, which sleeps ``seconds`` for each row."""
    passes = Passes()

    def before(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        rows = len(options["input_ids"])
        passes.append(rows)
        passes.first.set()
        sleep(seconds * rows)

    hook = loaded.network.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()
