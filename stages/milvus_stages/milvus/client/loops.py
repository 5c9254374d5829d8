"""The asynchronous clients of a connection: one for each event loop that searches, for as long as the loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

_SETTLE_SECONDS: Final = 0.01


class LoopClients:
    """Clients by event loop.

    Each client is held by an asynchronous generator, which its loop closes when it ends. So nothing of a client
    outlives its loop.

    Args:
        make: makes a client and a function that closes it, in the running loop and without waiting for anything.
    """

    def __init__(self, make: Callable[[], tuple[Any, Callable[[], Awaitable[None]]]]) -> None:
        self._make = make
        self._clients: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[Any, None]]] = {}

    def __len__(self) -> int:
        return len(self._clients)

    async def here(self) -> Any:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        if (entry := self._clients.get(loop)) is None:
            for ended in [each for each in self._clients if each.is_closed()]:
                del self._clients[ended]  # it was closed without closing its generators
            holder = self._hold(loop)
            entry = self._clients[loop] = await anext(holder), holder
        return entry[0]

    async def _hold(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[Any, None]:
        client, close = self._make()
        try:
            yield client
        finally:
            self._clients.pop(loop, None)
            await close()
            # gRPC learns a moment later that calls were cut off, and must find the loop alive: otherwise it would
            # complain in the next loop, and never end its thread.
            await asyncio.sleep(_SETTLE_SECONDS)

    async def aclose_here(self) -> None:
        """Close the client of the running loop, if there is one. The next ``here`` makes another."""
        if entry := self._clients.pop(asyncio.get_running_loop(), None):
            await entry[1].aclose()

    def close(self) -> None:
        """Have every client closed by its loop, if that runs."""
        clients, self._clients = self._clients, {}
        for loop, (_, holder) in clients.items():
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(_close(holder), loop)


async def _close(holder: AsyncGenerator[Any, None]) -> None:
    await holder.aclose()
