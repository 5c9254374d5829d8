"""The error for a refused request: its status, code, request id and next step."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from milvus_pipeline import ServiceError
from milvus_pipeline.plugin import retry_after
from milvus_stages.hosted.replies import Received, get_member
from milvus_stages.hosted.service import HostedService
from milvus_stages.privacy.redaction import Private

_READ: Final = 3000
"""Bytes of a body that are read if it is not JSON."""

_LONGEST_WAIT: Final = 86_400.0
"""Seconds. A number with many digits is not a wait, and may be anything, so it is not repeated."""

_ID_HEADERS: Final = ("x-debug-trace-id", "x-typesafe-request-id", "x-request-id", "request-id")
_ID_PATHS: Final = (("request_id",), ("id",))
_CODE_PATHS: Final = (
    ("code",),
    ("error_type",),
    ("detail", "error_type"),
    ("error", "code"),
    ("error", "type"),
    ("type",),
)
_TEXT_PATHS: Final = (("error",), ("error", "message"), ("message",), ("detail",), ("detail", "message"))

_NEXT: Final = {
    402: "check the account's balance and billing",
    405: "check base_url",
    407: "check the proxy",
    413: "lower max_documents, or shorten the documents",
    429: "set requests_per_minute or tokens_per_minute to what your plan allows, or lower max_concurrency",
    501: "check the model, which may not be a reranker",
}


def refusal_error(received: Received, service: HostedService, request: str, private: Private) -> ServiceError:
    """Return the error for a reply whose status is not one of success.

    Args:
        received: the reply.
        service: the stage that sent the request.
        request: method and URL.
        private: what the message must not repeat.
    """
    data = _data(received)
    code = private.token(_first_text(data, _CODE_PATHS))
    ids = (received.headers[name] for name in _ID_HEADERS if received.headers.get(name))
    request_id = private.token(next(ids, None) or _first_text(data, _ID_PATHS))
    what = f"{request} answered {received.status}"
    if code:
        what += f" {code}"
    if request_id:
        what += f" (request {request_id})"
    wait = retry_after(received.headers)
    if wait is not None:
        wait = min(wait, _LONGEST_WAIT)
        what += f", and asks for a wait of {wait:,.{0 if wait >= 100 else 1}f} s"
    error = ServiceError(
        what,
        _next_step(received.status, service),
        place=service.type,
        status=received.status,
        code=code,
        detail=private.clean(_text(received, data)),
        request_id=request_id,
        retry_after=wait,
        retryable=service.passing(received),
    )
    if service.too_large(error):
        error.reason_code = "too_large"
    return error


def _next_step(status: int, service: HostedService) -> str:
    if 300 <= status < 400:
        return "redirects are not followed; set base_url to the service's new address"
    if status in (401, 403):
        key_names = service.key_variables
        if not key_names and not service.headers:
            return "no key was sent; name the environment variable that holds it in api_key_env"
        key = f"the API key in {' or '.join(key_names)}" if key_names else "the secret in headers"
        return f"check {key}" if status == 401 else f"check {key}, and the account's balance and permissions"
    if status == 404:
        return "check base_url" if service.model is None else "check model and base_url"
    if step := _NEXT.get(status):
        return step
    if status >= 500 or status == 408:
        return "the service fails; try again later"
    return "check the model, the options and the texts against what the service accepts"


def _data(received: Received) -> Any:
    try:
        return json.loads(received.content)
    except (ValueError, RecursionError):
        return None


def _text(received: Received, data: Any) -> str:
    """Return the service's text, from the shapes that such services use."""
    if text := _first_text(data, _TEXT_PATHS):
        return text
    detail = get_member(data, "detail")
    complaints = detail if isinstance(detail, list) else get_member(data, "errors")
    if isinstance(complaints, list):
        # Only place and message: the entry's `input` is the rejected document.
        return "; ".join(filter(None, map(_complaint, complaints[:3])))
    if isinstance(data, str):
        return data
    return _raw_text(received) if data is None else ""


def _complaint(entry: Any) -> str:
    place = get_member(entry, "loc") or get_member(entry, "field")
    text = get_member(entry, "msg") or get_member(entry, "message")
    if isinstance(place, list):
        place = ".".join(map(str, place))
    return ": ".join(part for part in (place, text) if isinstance(part, str) and part)


def _raw_text(received: Received) -> str:
    body = received.content[:_READ].decode("utf-8", "replace").strip()
    if not body or body == "null":
        return ""
    if body.startswith("<"):
        title = re.search(r"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
        return f"an HTML page: {html.unescape(title[1])}" if title else "an HTML page"
    return body


def _first_text(data: Any, paths: Iterable[tuple[str, ...]]) -> str | None:
    """Return the first member at one of these paths that is a text and not blank."""
    found = (get_member(data, *path) for path in paths)
    return next((text for text in found if isinstance(text, str) and text.strip()), None)
