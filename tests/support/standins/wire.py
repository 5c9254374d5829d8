"""One connection of HTTP/1.1: h11 parses and composes, asyncio's streams carry."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine
from typing import Any

import h11

from support.standins.messages import Reply

_READ = 1 << 16


class Gone(Exception):  # noqa: N818 - an event, not a fault
    """The client has closed the connection."""


class Wire:
    """Reads requests from one connection and writes replies to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def receive(self) -> tuple[h11.Request, bytes] | None:
        """The next request and its body; None when the client has closed the connection.

        Raises:
            h11.RemoteProtocolError: it is not HTTP.
        """
        head = await self._event()
        if not isinstance(head, h11.Request):
            return None
        parts = []
        while isinstance(event := await self._event(), h11.Data):
            parts.append(bytes(event.data))
        return (head, b"".join(parts)) if isinstance(event, h11.EndOfMessage) else None

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            self._http.receive_data(await self._reader.read(_READ))
        return event

    async def wait(self, until: Coroutine[Any, Any, Any]) -> None:
        """Wait, and notice meanwhile when the client leaves.

        Raises:
            Gone: it has left.
        """
        end = asyncio.ensure_future(until)
        try:
            while not end.done():
                heard = asyncio.ensure_future(self._reader.read(_READ))
                try:
                    await asyncio.wait({end, heard}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not heard.done():
                        heard.cancel()
                        await asyncio.wait({heard})
                if not heard.cancelled():
                    data = heard.result()  # a reset is a ConnectionError
                    if not data:
                        raise Gone
                    self._http.receive_data(data)  # the start of the next request
        finally:
            end.cancel()

    async def send(self, reply: Reply) -> bool:
        """Send a reply; whether the connection can take another request.

        Raises:
            Gone, ConnectionError: the client has left.
        """
        if reply.ending == "before":
            return False
        if reply.ending == "reset":
            self._reset()
            return False
        content = reply.content
        out = self._http.send(self._head(reply, len(content))) or b""
        if reply.ending == "middle":
            content = content[: len(content) // 2]
        size = max(1, -(-len(content) // reply.pieces))
        for start in range(0, len(content), size):
            if start and reply.pause:
                await self._flush(out)
                out = b""
                await self.wait(asyncio.sleep(reply.pause))
            out += self._http.send(h11.Data(data=content[start : start + size])) or b""
        if reply.ending != "middle":
            out += self._http.send(h11.EndOfMessage()) or b""
        await self._flush(out)
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    @staticmethod
    def _head(reply: Reply, length: int) -> h11.Response:
        headers = {} if isinstance(reply.body, bytes) else {"content-type": "application/json"}
        headers |= {"transfer-encoding": "chunked"} if reply.chunked else {"content-length": str(length)}
        headers |= {name.lower(): value for name, value in reply.headers.items()}
        if reply.ending == "close":
            headers["connection"] = "close"
        return h11.Response(status_code=reply.status, headers=list(headers.items()))

    async def _flush(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        """Send what is on its way, and close."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), 1)
        self._writer.transport.abort()
