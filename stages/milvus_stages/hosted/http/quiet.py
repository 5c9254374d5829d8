"""Keeps a service's words out of the logs of the HTTP libraries."""

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
        """Return whether the record belongs to a request that is not ours."""
        return not _ours.get()


_not_ours: Final = _NotOurs()


def install_log_filter() -> None:
    """Install the filter that ``unlogged`` uses; installing it again changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_not_ours)


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep httpx and httpcore from logging what this thread or task does; others are logged as usual.

    A service chooses the reason phrases and headers of its replies, and may repeat a key or a text in them.
    """
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)
