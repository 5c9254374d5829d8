"""Threads, sockets and tasks of this process, and a check that a test leaves none behind."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SETTLE_SECONDS = 10.0  # threads and sockets of gRPC end a moment after their channels


def thread_names() -> list[str]:
    """Return the sorted names of the threads that Python knows."""
    return sorted(thread.name for thread in threading.enumerate())


def socket_count() -> int:
    """Return the number of sockets that this process has open."""
    count = 0
    for descriptor in Path("/dev/fd").iterdir():
        with suppress(OSError):  # the descriptor of the listing itself is closed by now
            count += stat.S_ISSOCK(os.fstat(int(descriptor.name)).st_mode)
    return count


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Fail if there are more threads or sockets after the block than before it."""
    threads, sockets = thread_names(), socket_count()
    yield
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and (len(thread_names()) > len(threads) or socket_count() > sockets):
        gc.collect()  # gRPC closes channels when they are freed, and cycles may hold them
        time.sleep(0.05)
    assert len(thread_names()) <= len(threads), f"threads before: {threads}, after: {thread_names()}"
    assert socket_count() <= sockets, f"sockets before: {sockets}, after: {socket_count()}"


async def other_tasks() -> set[asyncio.Task[object]]:
    """Return the tasks of this event loop that are still there after some time, without the caller's."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return (await asyncio.wait(others, timeout=SETTLE_SECONDS))[1] if others else set()
