"""What a self-hosted server reports about its model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Deadline, require
from milvus_stages.hosted.http.quiet import install_log_filter, unlogged
from milvus_stages.hosted.http.transport import certificates
from milvus_stages.hosted.service import HostedService

_SECONDS: Final = 5.0
_MOST_BYTES: Final = 64 * 2**10
_MOST_CHARACTERS: Final = 300


def fetch_model_info(stage: HostedService, path: str, names: Sequence[str]) -> dict[str, str]:
    """Return strings of the JSON object that a GET beside the stage's endpoint returns, as far as it has them.

    No answer within 5 seconds is not an error; the result is empty then. The key is sent, since such servers require it
    for all paths.

    Args:
        stage: may be closed.
        path: such as ``/info``.
        names: of the members.
    """
    try:
        url, headers, secrets = stage.prepared()
        seconds = stage.opening.remaining(at_most=_SECONDS) or _SECONDS  # it may be long over
        data = _get_object(url.removesuffix(stage.path) + path, headers, stage.type, seconds)
    except StageError:
        return {}
    found = {name: data[name] for name in names if isinstance(data.get(name), str)}
    return {
        name: value
        for name, value in found.items()
        if len(value) <= _MOST_CHARACTERS and value.isprintable() and not any(secret in value for secret in secrets)
    }


def _get_object(url: str, headers: Mapping[str, str], service: str, seconds: float) -> dict[str, Any]:
    """Return the object at the address; empty if there is none within ``seconds``."""
    httpx = require("httpx", extra=None, wanted_by=service)
    install_log_filter()
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
