"""SIGTERM as an exception, so that a command that is told to end does so in order, as with Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM was sent: by ``kill``, a shutdown, a batch system whose time is up."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """While this lasts SIGTERM raises Terminated in the main thread. Without effect in another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
