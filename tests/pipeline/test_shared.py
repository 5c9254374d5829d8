"""Resources shared by the users in one process: made once, closed after the last user, kept apart by key."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from milvus_pipeline.plugin import Shared
from support.processes import in_its_own_process

WAIT = 10.0


class Resource:
    """Something that is open until it is closed."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.is_open = True

    def close(self) -> None:
        assert self.is_open
        self.is_open = False


@pytest.fixture
def shared() -> Shared[str, Resource]:
    """A registry that closes its resources."""
    return Shared(Resource.close)


def test_users_of_a_key_share_one_value(shared):
    """The first user makes it, the last one's release closes it, and the next user makes another."""
    first, second = shared.acquire("a", Resource), shared.acquire("a", Resource)
    other = shared.acquire("b", Resource)
    assert first is second
    assert other is not first
    assert (shared.users(first), shared.users(other)) == (2, 1)
    shared.release(first)
    assert first.is_open
    shared.release(second)
    assert not first.is_open
    assert shared.users(first) == 0
    assert shared.values() == [other]
    assert shared.acquire("a", Resource) is not first


def test_a_value_that_is_not_in_there_is_ignored(shared):
    """As one that was closed already, or belongs to the parent of a forked process."""
    shared.release(Resource())
    value = shared.acquire("a", Resource)
    shared.release(value)
    shared.release(value)
    assert not value.is_open


def test_a_failure_to_make_a_value_leaves_nothing(shared):
    """Its exception is raised, and the next user tries again."""

    def fail():
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        shared.acquire("a", fail)
    assert shared.values() == []
    assert shared.acquire("a", Resource).is_open


def test_threads_make_a_value_once(shared):
    """Of many threads that acquire and release the same key at a time, each has an open value."""

    def work(_):
        for _ in range(200):
            value = shared.acquire("a", Resource)
            assert value.is_open
            shared.release(value)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert shared.values() == []


def test_a_slow_value_delays_its_own_users_alone(shared):
    """A second user of the key gives up after its timeout; users of other keys do not wait."""
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(WAIT)
        return Resource()

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(shared.acquire, "slow", slow)
        assert begun.wait(WAIT)
        with pytest.raises(TimeoutError):
            shared.acquire("slow", Resource, timeout=0.01)
        assert shared.acquire("quick", Resource, timeout=0.01).is_open
        go_on.set()
        assert shared.acquire("slow", Resource, timeout=WAIT) is made.result(WAIT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_without_what_is_its_parents():
    """Unless the values cross a fork; a lock that a thread of the parent held is free in either case."""
    done = in_its_own_process(__file__, "fork_with_values")
    assert (done.returncode, done.stderr) == (0, "")


def fork_with_values():
    parents, crossing = Shared[str, Resource](Resource.close), Shared[str, Resource](at_fork=lambda _: nullcontext())
    own, crossed = parents.acquire("a", Resource), crossing.acquire("a", Resource)
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(WAIT)
        return Resource()

    threads = [threading.Thread(target=shared.acquire, args=("slow", slow)) for shared in (parents, crossing)]
    for thread in threads:
        thread.start()
        assert begun.wait(WAIT)
        begun.clear()

    def child():
        parents.release(own)
        assert own.is_open
        assert parents.acquire("a", Resource) is not own
        assert crossing.acquire("a", Resource) is crossed
        for shared in (parents, crossing):
            assert shared.acquire("slow", Resource, timeout=WAIT).is_open

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(WAIT)
    assert process.exitcode == 0
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert parents.acquire("a", Resource) is own
