"""What a process holds: threads, sockets, tasks. What a test leaves behind is more than there was before."""

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
    """The names of the threads that Python knows, in order."""
    return sorted(thread.name for thread in threading.enumerate())


def socket_count() -> int:
    """How many sockets this process has open."""
    count = 0
    for descriptor in Path("/dev/fd").iterdir():
        with suppress(OSError):  # the one that lists them is closed again
            count += stat.S_ISSOCK(os.fstat(int(descriptor.name)).st_mode)
    return count


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Fails where more threads or sockets are left after the block than there were before it."""
    threads, sockets = thread_names(), socket_count()
    yield
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and (len(thread_names()) > len(threads) or socket_count() > sockets):
        gc.collect()  # the channels of gRPC end when they are freed, and cycles may hold them
        time.sleep(0.05)
    assert len(thread_names()) <= len(threads), f"threads before: {threads}, after: {thread_names()}"
    assert socket_count() <= sockets, f"sockets before: {sockets}, after: {socket_count()}"


async def other_tasks() -> set[asyncio.Task[object]]:
    """The tasks of this event loop beside the caller's, once they have had time to end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return (await asyncio.wait(others, timeout=SETTLE_SECONDS))[1] if others else set()
