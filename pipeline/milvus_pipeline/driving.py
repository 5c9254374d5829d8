"""Work that blocking callers and event loops do alike, written once: a generator yields what is to be done next.

It is sent what came of that, or thrown the error that it ended in, and returns its result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar, cast

Step = TypeVar("Step")
Result = TypeVar("Result")


def driven(steps: Generator[Step, Any, Result], do: Callable[[Step], Any]) -> Result:
    """What the generator returns, each of whose steps is done by ``do``."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as done:
        return cast("Result", done.value)


async def adriven(steps: Generator[Step, Any, Result], do: Callable[[Step], Awaitable[Any]]) -> Result:
    """``driven`` for an event loop, which ``do`` is awaited in. A cancellation is not the generator's to see."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = await do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as done:
        return cast("Result", done.value)
