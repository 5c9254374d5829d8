"""The wait that a reply asks for, and the wait that follows."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline import ServiceError
from milvus_pipeline.plugin import PASSING_STATUSES, Deadline
from milvus_pipeline.retry import RetrySettings, retry_after, retrying

NOW = 784_111_747.0
"""Half a minute before the date of the HTTP standard's examples."""


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after-ms": "200"}, 0.2),
        ({"retry-after-ms": "200", "retry-after": "30"}, 0.2),
        ({"retry-after-ms": "soon", "retry-after": "30"}, 30),
        ({"retry-after-ms": "-1", "retry-after": "30"}, 30),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 30),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 30),
        ({"retry-after": "Sun, 06 Nov 1994 03:49:37 -0500"}, 30),
        ({"retry-after": "Sun, 06 Nov 1994 08:48:37 GMT"}, 0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 30),
        ({"retry-after": "Sun, 99 Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "1_0"}, None),
        ({"retry-after": "+5"}, None),
        ({"retry-after": "0x10"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "Sun, ٠٦ Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_every_form_of_the_hint_is_read(headers, seconds):
    """Seconds, fractions of them, milliseconds and HTTP dates are read; anything else asks for no wait."""
    assert retry_after(headers, now=NOW) == (None if seconds is None else pytest.approx(seconds))


def test_a_date_counts_from_now():
    """A date counts from the current time by default."""
    assert retry_after({"retry-after": formatdate(usegmt=True, timeval=None)}, now=NOW) > 50
    assert retry_after({"retry-after": formatdate(usegmt=True)}) == 0.0


@given(st.text(), st.text())
def test_no_hint_breaks_anything(given, milliseconds):
    """Any text gives a finite number of seconds from 0, or None."""
    for headers in ({"retry-after": given}, {"retry-after-ms": milliseconds, "retry-after": given}):
        seconds = retry_after(headers)
        assert seconds is None or 0 <= seconds < float("inf")


def test_which_statuses_pass():
    """Passing statuses are those of a server that is busy or broken for a while, not those of a wrong request."""
    assert sorted(PASSING_STATUSES) == [408, 429, 500, 502, 503, 504, 529]


@given(st.floats(0, 10), st.floats(0.1, 10))
def test_a_wait_that_is_asked_for_is_kept_and_spread(asked, most):
    """A wait is at most a tenth longer than asked, never shorter; above `max_wait` there is no other attempt."""
    waits: list[float] = []
    reported: list[float] = []
    settings = RetrySettings(attempts=2, min_wait=0.001, max_wait=most)

    def fail():
        raise ServiceError("busy", retryable=True)

    policy = retrying(
        settings, Deadline(), lambda error: True, lambda error: asked, lambda error, seconds: reported.append(seconds)
    )
    with pytest.raises(ServiceError, match="busy"):
        policy.copy(sleep=waits.append)(fail)
    assert waits == reported
    if asked > most:
        assert waits == []
    else:
        assert asked <= waits[0] <= min(most, max(asked * 1.1, 0.001))
