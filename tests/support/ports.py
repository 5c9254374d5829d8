"""Free ports of this machine, which stay free while their server restarts."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

# Below the ports that systems give to outgoing connections (from 32768 on Linux, from 49152 on macOS). While a server
# restarts, one of those could be taken by a client that tries to connect, even as both ends of one connection.
_LOWEST, _HIGHEST = 12000, 32000


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports on which nothing listens."""
    found: list[int] = []
    with ExitStack() as holding:  # until all are found, so that they differ
        while len(found) < count:
            port = random.randint(_LOWEST, _HIGHEST)  # noqa: S311 - no secret
            with suppress(OSError):
                held = holding.enter_context(socket.socket())
                held.bind(("", port))
                found.append(port)
    return found


def is_free(port: int) -> bool:
    """Return whether nothing accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
