"""Keeps a service's words out of the logs of the HTTP libraries."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_LOGGERS: Final = ("httpx", *(f"httpcore.{name}" for name in ("connection", "http11", "http2", "proxy", "socks")))

_ours: ContextVar[bool] = ContextVar("_ours", default=False)


def _is_foreign(record: logging.LogRecord) -> bool:
    return not _ours.get()


def install_log_filter() -> None:
    """Install the filter that ``unlogged`` uses; installing it again changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_foreign)


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
