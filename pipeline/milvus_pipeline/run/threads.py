"""Several threads at work on one batch, for blocking callers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any


def in_threads(work: Callable[[], None], count: int, name: str, give_up: Callable[[], Any]) -> None:
    """Do the work in several threads at once, each in the caller's context, and wait for all of them.

    Args:
        work: takes tasks from a queue that the threads share, until there is none.
        count: of threads.
        name: of the threads.
        give_up: clears the queue, where the caller is interrupted or the work of a thread has failed.

    Raises:
        BaseException: what ended the work of the first thread that failed.
    """
    broken: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # such as a plugin's SystemExit, which a thread would swallow
            broken.append(error)

    # Daemons: after Ctrl-C the process shall end without waiting for replies.
    threads = [
        threading.Thread(target=copy_context().run, args=(guarded,), name=name, daemon=True) for _ in range(count)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if broken:
            raise broken[0]
    except BaseException:
        give_up()
        raise
