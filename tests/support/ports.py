"""Ports of this machine that are free, and that stay so while what listens on them is away for a moment."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

# Below the ports that systems give to outgoing connections (from 32768 on Linux, from 49152 on macOS): one of those
# could be taken, while its server is away, by a client that looks for the server, even as both ends of one connection.
_LOWEST, _HIGHEST = 12000, 32000


def free_ports(count: int) -> list[int]:
    """That many different ports on which nothing listens."""
    found: list[int] = []
    with ExitStack() as holding:  # all at once, so that they differ
        while len(found) < count:
            port = random.randint(_LOWEST, _HIGHEST)  # noqa: S311 - no secret
            with suppress(OSError):
                held = holding.enter_context(socket.socket())
                held.bind(("", port))
                found.append(port)
    return found


def is_free(port: int) -> bool:
    """Whether nothing takes connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
