"""Keeps what a service repeats out of the logs of the libraries that talk to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_LOGGERS: Final = ("httpx", *(f"httpcore.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")))

_ours: ContextVar[bool] = ContextVar("_ours", default=False)


class _NotOurs(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is of somebody else's request."""
        return not _ours.get()


_not_ours: Final = _NotOurs()


def stand_before_loggers() -> None:
    """Make ``unlogged`` work, which it does from then on; doing it again changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_not_ours)


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep httpx and httpcore from logging what this thread or task does; what others do is logged as before.

    Reason phrases and headers of replies are a service's own words, and may repeat a key or a text.
    """
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)
