"""The catalogue of scripted replies: by provider and by name, to be given to `StandIn.script` and to parametrize tests.

Every function takes a provider's name and gives a dict from a name to what `script` takes:

- `errors`: each documented error, and what gateways and frameworks send instead (HTML, nothing, JSON null ...);
- `rate_limits`: 429 with each form of the hint when to retry;
- `variants`: replies with status 200 that are right, though unusual;
- `wrong`: replies with status 200 that no client may take for a result.

`FAULTS` holds what happens to connections; `late` and `dripping` are slow replies.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate

from support.standins import answers, lists
from support.standins.messages import Reply, Request, Scripted
from support.standins.provider import Provider, fastapi_list
from support.standins.providers import make

_HTML = {"content-type": "text/html; charset=utf-8"}
_PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
_TEXT = {"content-type": "application/json"}

FAULTS: Mapping[str, Scripted] = {
    "closed": Reply(ending="before"),
    "reset": Reply(ending="reset"),
    "cut": lambda request, normal: normal.but(ending="middle"),
    "cut_chunked": lambda request, normal: normal.but(ending="middle", chunked=True, pieces=4),
}
"""The connection is closed or reset before the reply; it ends in the middle of a body with a length, or in chunks."""


def late(seconds: float) -> Scripted:
    """The normal reply, after some time."""
    return lambda request, normal: normal.but(delay=seconds)


def dripping(pause: float, pieces: int = 20) -> Scripted:
    """The normal reply, in pieces with a pause between them."""
    return lambda request, normal: normal.but(pieces=pieces, pause=pause)


def closing() -> Scripted:
    """The normal reply, after which the connection is closed in good order."""
    return lambda request, normal: normal.but(ending="close")


def chunked() -> Scripted:
    """The normal reply, in chunks."""
    return lambda request, normal: normal.but(chunked=True, pieces=3)


def rate_limits(provider: str) -> dict[str, Scripted]:
    """The provider's 429 with every form of the wait that it asks for."""
    limit = make(provider).error(429, "rate limit reached")
    return {
        "retry_after_1": limit.but(headers={"retry-after": "1"}),
        "retry_after_fraction": limit.but(headers={"retry-after": "0.2"}),
        "retry_after_0": limit.but(headers={"retry-after": "0"}),
        "retry_after_ms_200": limit.but(headers={"retry-after-ms": "200"}),
        "retry_after_ms_wins": limit.but(headers={"retry-after-ms": "200", "retry-after": "30"}),
        "retry_after_date": lambda request, normal: limit.but(headers={"retry-after": _date(1.5)}),
        "retry_after_past_date": lambda request, normal: limit.but(headers={"retry-after": _date(-60)}),
        "retry_after_3600": limit.but(headers={"retry-after": "3600"}),
        "retry_after_garbage": limit.but(headers={"retry-after": "soon"}),
        "retry_after_negative": limit.but(headers={"retry-after": "-5"}),
        "retry_after_nan": limit.but(headers={"retry-after": "nan"}),
        "no_hint": limit,
    }


def errors(provider: str) -> dict[str, Scripted]:
    """The provider's own errors, and those that any server may send. A name begins with the status."""
    service = make(provider)
    return {
        **service.errors(),
        "401_repeating_the_key": lambda request, normal: service.error(401, f"no such key: {request.key}"),
        "401_repeating_half_the_key": lambda request, normal: service.error(401, f"no such key: {_half(request)}..."),
        "400_repeating_the_documents": lambda request, normal: service.error(400, f"bad: {_sent(service, request)}"),
        "422_list_repeating_the_documents": lambda request, normal: Reply(
            422, fastapi_list(service.documents_key, "too long", _sent(service, request))
        ),
        "400_empty_body": Reply(400),
        "400_json_null": Reply(400, None),
        "400_json_string": Reply(400, "no"),
        "400_json_list": Reply(400, ["no"]),
        "400_long_text": service.error(400, "x" * 5_000),
        "400_broken_json": Reply(400, b'{"message": "no', _TEXT),
        "400_not_utf8": Reply(400, b"\xff\xfe\xfa", {"content-type": "text/plain"}),
        "403_html": Reply(403, _PAGE, _HTML),
        "404_html": Reply(404, _PAGE, _HTML),
        "301_redirect": Reply(301, b"", {"location": "/elsewhere"}),
        "307_redirect": Reply(307, b"", {"location": "/elsewhere"}),
        "408_timeout": service.error(408, "request timeout"),
        "500_empty_body": Reply(500),
        "500_json_null": Reply(500, None),
        "500_json_string": Reply(500, "internal error"),
        "502_html": Reply(502, _PAGE, _HTML),
        "503_plain": service.error(503, "service unavailable"),
        "529_overloaded": service.error(529, "overloaded"),
    }


def variants(provider: str) -> dict[str, Scripted]:
    """Right replies with status 200: a client must take them."""
    service = make(provider)
    return {"normal": lambda request, normal: normal, **_shapes(service).variants(service)}


def wrong(provider: str) -> dict[str, Scripted]:
    """Wrong replies with status 200: a client must refuse them."""
    service = make(provider)
    return {
        **_shapes(service).wrong(service),
        "json_null": Reply(200, None),
        "json_string": Reply(200, "ok"),
        "json_number": Reply(200, 1),
        "html": Reply(200, _PAGE, _HTML),
        "empty_body": Reply(200),
        "broken_json": Reply(200, b'{"results": [{"index": 0, "relev', _TEXT),
        "nested_too_deep": Reply(200, b"[" * 100_000, _TEXT),
        "not_utf8": Reply(200, b'{"results": "\xff"}', _TEXT),
        "an_error_in_200": lambda request, normal: service.error(500, "internal error").but(status=200),
        "no_content": Reply(204),
    }


def _shapes(service: Provider):
    return answers if service.name == "jev" else lists


def _date(seconds: float) -> str:
    """An HTTP date that many seconds from now."""
    return formatdate(time.time() + seconds, usegmt=True)


def _half(request: Request) -> str:
    key = request.key or ""
    return key[: len(key) // 2]


def _sent(service: Provider, request: Request) -> object:
    """The documents of a request; for a service without such a list, the whole body."""
    body = request.body if isinstance(request.body, dict) else {}
    return body.get(service.documents_key, body)
