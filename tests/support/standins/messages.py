"""What goes over the wire: the request that came, the reply that is sent, and what may go wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Ending = Literal["keep", "close", "before", "reset", "middle"]


@dataclass
class Request:
    """One request, as it came.

    Attributes:
        number: 1 for the server's first request.
        method: such as ``POST``.
        path: without the query string.
        headers: by lower-case name.
        raw: the bytes of the body.
        body: the body parsed as JSON; None if it is not JSON.
        arrived: seconds on the monotonic clock, when the whole request had come.
        refused: why the service refuses this request by its own rules (status and reason); None if it accepts it.
            A scripted reply does not change it: assert on it that what a client sent was right.
        abandoned: whether the client closed the connection before it had its reply.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    body: Any
    arrived: float
    refused: str | None = None
    abandoned: bool = False

    @property
    def key(self) -> str | None:
        """The bearer key that was sent, if any."""
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        return key if scheme == "Bearer" and key else None


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        status: of HTTP.
        body: bytes are sent as they are, without a content type; anything else as JSON (None is the JSON ``null``).
        headers: in addition to the content type and the length; they replace a default of the same name.
        delay: seconds before the first byte.
        chunked: without a length, in chunks.
        pieces: into how many parts the body is cut.
        pause: seconds before each part but the first.
        ending: ``keep`` the connection; ``close`` it properly after the reply; close it ``before`` the first byte;
            ``reset`` it (TCP RST) before the first byte; close it in the ``middle`` of the body.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    chunked: bool = False
    pieces: int = 1
    pause: float = 0.0
    ending: Ending = "keep"

    @property
    def content(self) -> bytes:
        """The bytes of the body."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    def but(self, **changes: Any) -> Reply:
        """The same reply with other attributes; ``headers`` are added to those it has."""
        headers = {**self.headers, **changes.pop("headers", {})}
        return replace(self, headers=headers, **changes)


Change = Callable[[Request, Reply], Reply]
"""Makes a reply of the request and of the reply that the service would give by itself."""

Scripted = Reply | Change
"""What a script may hold."""


class Refusal(Exception):  # noqa: N818 - a reply, not a fault of the program
    """A request is refused, with this reply."""

    def __init__(self, reply: Reply, reason: str) -> None:
        super().__init__(reason)
        self.reply = reply


def changed(edit: Callable[[Any, Request], Any]) -> Change:
    """A change of the body of a normal reply. ``edit`` gets a copy; a refusal stays as it is.

    Args:
        edit: from body and request to the new body.
    """

    def change(request: Request, normal: Reply) -> Reply:
        if normal.status != 200:
            return normal
        return normal.but(body=edit(json.loads(normal.content), request))

    return change
