"""What a server of one's own says of the model that it serves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Deadline, require
from milvus_stages.hosted.http.quiet import stand_before_loggers, unlogged
from milvus_stages.hosted.http.transport import certificates

if TYPE_CHECKING:
    from milvus_stages.hosted.reranker import HostedReranker

_SECONDS: Final = 5.0
_MOST_BYTES: Final = 64 * 2**10
_MOST_CHARACTERS: Final = 300


def served(stage: HostedReranker, path: str, names: Sequence[str]) -> dict[str, str]:
    """Texts of the JSON object that a GET beside the stage's endpoint is answered with, as far as it has them.

    Not to be told within 5 seconds is no failure: then there are none. The key goes along, since such servers want it
    for all paths.

    Args:
        stage: may be closed.
        path: such as ``/info``.
        names: of the members.
    """
    try:
        url, headers, secrets = stage.prepared()
        seconds = stage.opening.remaining(at_most=_SECONDS) or _SECONDS  # long after it was opened, too
        data = _got(url.removesuffix(stage.path) + path, headers, stage.type, seconds)
    except StageError:
        return {}
    found = {name: data[name] for name in names if isinstance(data.get(name), str)}
    return {
        name: value
        for name, value in found.items()
        if len(value) <= _MOST_CHARACTERS and value.isprintable() and not any(secret in value for secret in secrets)
    }


def _got(url: str, headers: Mapping[str, str], service: str, seconds: float) -> dict[str, Any]:
    """The object at the address; empty where there is none. It is waited for so long."""
    httpx = require("httpx", extra=None, wanted_by=service)
    stand_before_loggers()
    deadline, body = Deadline.after(seconds), b""
    try:
        with (
            unlogged(),
            httpx.Client(verify=certificates(), timeout=seconds, follow_redirects=False) as client,
            client.stream("GET", url, headers={**headers, "accept-encoding": "identity"}) as reply,
        ):
            if reply.status_code != 200:
                return {}
            for piece in reply.iter_bytes():
                body += piece
                if len(body) > _MOST_BYTES or deadline.expired:
                    return {}
        data = json.loads(body)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError, ImportError, OSError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
