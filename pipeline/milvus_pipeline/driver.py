"""Drivers of generators that yield steps: blocking and awaiting code is written once, as such a generator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar, cast

Step = TypeVar("Step")
Result = TypeVar("Result")


def drive(steps: Generator[Step, Any, Result], do: Callable[[Step], Any]) -> Result:
    """Run a generator to its end and return its result.

    Args:
        steps: yields steps; it is sent the outcome of each, or thrown its error.
        do: does a step.
    """
    try:
        step = next(steps)
        while True:
            try:
                outcome = do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        return cast("Result", end.value)


async def adrive(steps: Generator[Step, Any, Result], do: Callable[[Step], Awaitable[Any]]) -> Result:
    """``drive`` with an awaited ``do``. A cancellation is raised here, not thrown into the generator."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = await do(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        return cast("Result", end.value)
