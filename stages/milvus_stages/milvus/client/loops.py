"""The asynchronous clients of a connection: one for each event loop that searches, for as long as the loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

_SETTLE_SECONDS: Final = 0.01


class LoopClients:
    """Clients by event loop.

    A client is held by an asynchronous generator, which its loop closes when it ends: so nothing of it outlives the
    loop, whoever started it.

    Args:
        make: makes a client and what closes it, in the running loop and without waiting for anything.
    """

    def __init__(self, make: Callable[[], tuple[Any, Callable[[], Awaitable[None]]]]) -> None:
        self._make = make
        self._kept: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[Any, None]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def here(self) -> Any:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        if (kept := self._kept.get(loop)) is None:
            for ended in [each for each in self._kept if each.is_closed()]:
                del self._kept[ended]  # it was closed without a word to its generators
            holder = self._held(loop)
            kept = self._kept[loop] = await anext(holder), holder
        return kept[0]

    async def _held(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[Any, None]:
        client, close = self._make()
        try:
            yield client
        finally:
            self._kept.pop(loop, None)
            await close()
            # gRPC hears a moment later that calls were cut off, and must find the loop alive then: it would complain
            # in whichever loop comes next, and never end its thread.
            await asyncio.sleep(_SETTLE_SECONDS)

    async def aclose_here(self) -> None:
        """Close the client of the running loop, if there is one. The next ``here`` makes another."""
        if kept := self._kept.pop(asyncio.get_running_loop(), None):
            await kept[1].aclose()

    def close(self) -> None:
        """Have every client closed by its loop, where that runs."""
        kept, self._kept = self._kept, {}
        for loop, (_, holder) in kept.items():
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(_closed(holder), loop)


async def _closed(holder: AsyncGenerator[Any, None]) -> None:
    await holder.aclose()
