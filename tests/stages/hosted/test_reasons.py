"""The code of what a query failed in, which programs go by."""

from __future__ import annotations

import pytest

from support.hosted import ask, both_ways, each_provider, opened
from support.standins import FAULTS, StandIn, errors, late, wrong

STATUSES = {
    400: "refused",
    401: "unauthorized",
    402: "refused",
    403: "unauthorized",
    404: "refused",
    408: "unavailable",
    413: "too_large",
    422: "refused",
    429: "rate_limited",
    500: "unavailable",
    501: "unavailable",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
    529: "unavailable",
}
TOO_LARGE = {"tei": "422_validation", "jev": "400_overflow", "jina": "400_token_limit"}
OWN = {"tei": {422: "too_large"}, "jina": {400: "too_large"}}
"""Statuses for which a service's code says more; the stand-ins' plain errors have that code."""


@both_ways
@each_provider
def test_every_reply_has_its_code(way, provider):
    """By the status, by what cannot be read, by a connection that breaks."""
    with StandIn(provider) as server, opened(way, server, retry={"attempts": 1}, breaker=None) as call:

        def code(reply):
            server.always(reply)
            return call(["plum"]).failures[0].reason_code

        assert {status: code(server.error(status)) for status in STATUSES} == STATUSES | OWN.get(provider, {})
        assert {name: code(reply) for name, reply in wrong(provider).items()} == dict.fromkeys(
            wrong(provider), "bad_reply"
        )
        for name, fault in FAULTS.items():
            assert code(fault) == "unavailable", name
        if provider in TOO_LARGE:
            assert code(errors(provider)[TOO_LARGE[provider]]) == "too_large"


@both_ways
def test_no_answer_differs_from_no_time(way):
    """Nobody there, no reply in the time of an attempt, and no time left are different things."""
    with StandIn("cohere") as server:
        assert ask(way, server, base_url="http://127.0.0.1:1").failures[0].reason_code == "unavailable"
        server.always(late(30))
        fields = {"retry": {"attempts": 1}}
        assert ask(way, server, request_timeout=0.1, **fields).failures[0].reason_code == "unavailable"
        assert ask(way, server, timeout=0.1, **fields).failures[0].reason_code == "deadline"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_compressed_reply_that_cannot_be_read_is_a_bad_one(encoding):
    """The service was reached, whatever it answered."""
    with StandIn("cohere") as server:
        server.always(lambda request, normal: normal.but(headers={"content-encoding": encoding}))
        assert ask("sync", server).failures[0].reason_code == "bad_reply"
