"""The deadline: what is left of it, and which of two comes first."""

import time

import pytest

from milvus_pipeline.errors import DeadlineError
from milvus_pipeline.plugin import Deadline


def test_no_deadline_never_comes():
    """Without a time limit nothing expires."""
    deadline = Deadline()
    assert deadline.remaining() is None
    assert deadline.remaining(at_most=5.0) == 5.0
    assert not deadline.expired
    deadline.check()


def test_remaining_is_bounded_on_both_sides():
    """The remaining time is at most the limit that was asked for, and never negative."""
    assert Deadline.after(100.0).remaining(at_most=5.0) == 5.0
    assert 99.0 < (Deadline.after(100.0).remaining() or 0) <= 100.0
    assert Deadline(at=time.monotonic() - 1, budget=1.0).remaining() == 0.0


def test_the_sooner_of_two_counts():
    """A stage's own time shortens the query's deadline and never lengthens it."""
    long = Deadline.after(100.0)
    assert long.sooner(None) is long
    assert long.sooner(200.0) is long
    assert long.sooner(1.0).budget == 1.0
    assert Deadline().sooner(None).at is None


def test_a_deadline_that_is_only_a_point_in_time_knows_how_far_it_was():
    """The message has the time limit, even if a plugin made the deadline itself."""
    assert Deadline().budget is None
    assert 9 < Deadline(time.monotonic() + 10).budget <= 10
    with pytest.raises(DeadlineError, match=r"timed out after 0.5 s; increase `timeout`"):
        Deadline(at=time.monotonic() - 1, budget=0.5).check()
    with pytest.raises(DeadlineError, match=r"timed out after 0 s"):
        Deadline(time.monotonic()).check()
