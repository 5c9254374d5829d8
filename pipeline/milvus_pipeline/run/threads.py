"""Several threads that work on one batch, for blocking callers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final

_NOTICE_SECONDS: Final = 0.2


def in_threads(work: Callable[[], None], count: int, name: str, give_up: Callable[[], Any]) -> None:
    """Run ``work`` in several threads at once, each with the caller's context, and wait for all of them.

    Args:
        work: takes tasks from a queue that the threads share, until it is empty.
        count: number of threads.
        name: of the threads.
        give_up: clears the queue; called if the caller is interrupted, or a thread failed.

    Raises:
        BaseException: the error of the first thread that failed.
    """
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # such as a plugin's SystemExit, which a thread would swallow
            errors.append(error)

    # Daemons: after Ctrl-C the process must end without waiting for replies.
    threads = [
        threading.Thread(target=copy_context().run, args=(guarded,), name=name, daemon=True) for _ in range(count)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            # A Ctrl-C in the instant before a wait is seen only after it, so no wait is long.
            while thread.is_alive():
                thread.join(_NOTICE_SECONDS)
        if errors:
            raise errors[0]
    except BaseException:
        give_up()
        raise
