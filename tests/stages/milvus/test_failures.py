"""What failed calls lead to: another attempt, smaller calls, an error with the next step."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import (
    ConnectionConfigException,
    DescribeCollectionException,
    ErrorCode,
    MilvusException,
    ParamError,
)

from milvus_pipeline import DeadlineError, Pipeline, StageError
from milvus_pipeline.plugin import Deadline
from milvus_pipeline.retry import RetrySettings
from milvus_stages import MilvusSearch
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.server import CALL_SECONDS, Connection

from .conftest import Engine


class RpcError(grpc.RpcError):
    """A gRPC error as a call raises it."""

    def __init__(self, status: grpc.StatusCode, details: str = "the details") -> None:
        super().__init__(status.name)
        self._status = status
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._details


def at_connect(status: grpc.StatusCode, details: str = "the details") -> MilvusException:
    """What pymilvus's constructor raises, whatever the fault."""
    error = MilvusException(code=2, message="Fail connecting to server on host:1")
    error.__cause__ = RpcError(status, details)
    return error


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
TOO_LARGE = RpcError(EXHAUSTED, "CLIENT: Received message larger than max (70000000 vs. 67108864)")


@pytest.mark.parametrize(
    ("error", "transient", "reason"),
    [
        (RpcError(UNAVAILABLE), True, "unavailable"),
        (RpcError(grpc.StatusCode.DEADLINE_EXCEEDED), True, "unavailable"),
        (RpcError(grpc.StatusCode.UNIMPLEMENTED), False, "refused"),
        (RpcError(grpc.StatusCode.PERMISSION_DENIED), False, "unauthorized"),
        (RpcError(grpc.StatusCode.UNAUTHENTICATED), False, "unauthorized"),
        (TOO_LARGE, False, "too_large"),
        (RpcError(EXHAUSTED, "grpc: trying to send message larger than max (9 vs. 8)"), False, "too_large"),
        (RpcError(EXHAUSTED, "request is rejected by the rate limiter"), True, "rate_limited"),
        (MilvusException(code=UNAVAILABLE, message="[search] Retry timeout: 1s"), True, "unavailable"),
        (MilvusException(code=ErrorCode.UNEXPECTED_ERROR, message="[search] Retry timeout: 1s"), True, "unavailable"),
        (MilvusException(code=1, message="[search] Retry timeout: 1s"), True, "unavailable"),
        (MilvusException(code=1, message="service not ready"), True, "unavailable"),
        (MilvusException(code=1, message="nprobe must be positive"), False, "refused"),
        (MilvusException(code=1, message=""), False, "refused"),
        (MilvusException(code=2, message="Fail connecting"), True, "unavailable"),
        (at_connect(UNAVAILABLE), True, "unavailable"),
        (at_connect(grpc.StatusCode.DEADLINE_EXCEEDED), True, "unavailable"),
        (at_connect(grpc.StatusCode.UNAUTHENTICATED), False, "unauthorized"),
        (MilvusException(code=503, message="node offline"), True, "unavailable"),
        (MilvusException(code=202, message="no replica"), True, "unavailable"),
        (MilvusException(code=8, message="rate limit"), True, "rate_limited"),
        (MilvusException(code=101, message="not loaded"), True, "not_loaded"),
        (MilvusException(code=103, message="partly loaded"), True, "not_loaded"),
        (MilvusException(code=106, message="partly loaded"), True, "not_loaded"),
        (MilvusException(code=100, message="no such collection"), False, "not_found"),
        (DescribeCollectionException(code=100, message="no such collection"), False, "not_found"),
        (MilvusException(code=65535, message="metric type not match"), False, "refused"),
        (MilvusException(code=6, message="unexpected token"), False, "query"),
        (MilvusException(code=1100, message="invalid parameter"), False, "refused"),
        (MilvusException(code=700, message="index not found"), False, "refused"),
        (MilvusException(code=800, message="no such database"), False, "not_found"),
        (MilvusException(code=2, message="database not found[database=x]"), False, "not_found"),
        (MilvusException(code=65535, message="database not found[database=x]"), False, "not_found"),
        (RpcError(grpc.StatusCode.INTERNAL, "Exception deserializing response!"), False, "bad_reply"),
        (
            MilvusException(code=1, message="Unexpected error, message=<'NoneType' object has no attribute 'status'>"),
            False,
            "bad_reply",
        ),
        (ParamError(message="[search] Retry timeout: in vain"), False, "refused"),
        (ConnectionConfigException(message="Open local milvus failed"), False, "refused"),
        (ValueError("bad"), False, "refused"),
        (AttributeError("bad"), False, "refused"),
        (StageError("ours"), False, "error"),
    ],
)
def test_what_failures_mean(error: Exception, transient: bool, reason: str) -> None:
    """By class first, then by status, then by code: the codes 1 and 2 mean many things, and numbers may have names."""
    assert failures.is_transient(error) is transient
    assert failures.explain(error, "here").reason_code == reason


@pytest.mark.parametrize(
    ("error", "seconds", "verdict"),
    [
        (RpcError(UNAVAILABLE), 1.0, True),
        (MilvusException(code=2, message="Fail connecting"), 1.0, True),
        (RpcError(grpc.StatusCode.DEADLINE_EXCEEDED), 1.0, True),
        (RpcError(grpc.StatusCode.DEADLINE_EXCEEDED), 0.1, None),
        (TimeoutError(), 0.1, None),
        (MilvusException(code=101, message="not loaded"), 1.0, False),
        (MilvusException(code=8, message="rate limit"), 1.0, False),
        (at_connect(UNAVAILABLE), 1.0, True),
        (at_connect(grpc.StatusCode.UNAUTHENTICATED), 1.0, False),
        (at_connect(UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED: self-signed certificate"), 1.0, None),
        (StageError("no word", reason_code="unavailable"), 1.0, True),
        (StageError("no such collection", reason_code="not_found"), 1.0, False),
        (DeadlineError("late"), 1.0, None),
    ],
)
def test_what_failures_say_of_the_server(error: Exception, seconds: float, verdict: bool | None) -> None:
    """A caller in a hurry says nothing of it, and an answer of whatever kind says that it lives."""
    assert failures.says_unreachable(error, seconds) is verdict


@pytest.mark.parametrize(("status", "transient"), [("UNAVAILABLE", True), ("UNAUTHENTICATED", False)])
def test_which_failures_to_connect_pass(status: str, transient: bool) -> None:
    """The constructor raises code 2 for a wrong token, too; only the cause tells them apart."""
    assert failures.is_transient_at_connect(at_connect(grpc.StatusCode[status])) is transient


def test_an_error_that_is_its_own_cause() -> None:
    """Pymilvus raises errors `from` themselves, which must not be followed."""
    error = MilvusException(code=2, message="lost")
    error.__cause__ = error
    assert not failures.is_transient_at_connect(error)
    assert "cannot be reached (lost)" in str(failures.explain(error, "here"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (at_connect(grpc.StatusCode.UNAUTHENTICATED), "in the environment variable MILVUS_TOKEN"),
        (
            at_connect(grpc.StatusCode.UNAVAILABLE),
            "cannot be reached (Fail connecting to server on host:1)",
        ),
        (RpcError(grpc.StatusCode.DEADLINE_EXCEEDED), "did not answer in time; check that it is healthy, or increase"),
        (RpcError(grpc.StatusCode.UNIMPLEMENTED), "check that `uri` names Milvus's gRPC port"),
        (TOO_LARGE, "lower `limit` or request fewer output_fields"),
        (RpcError(EXHAUSTED, "slow down"), "limits calls (slow down); call it less often"),
        (MilvusException(code=101, message="x"), "set `load: true`"),
        (MilvusException(code=800, message="database not found"), "the database does not exist"),
        (MilvusException(code=800, message="database not found"), "; check `db_name`"),
        (MilvusException(code=100, message="x"), "make it with `milvus-pipeline ingest`"),
        (
            MilvusException(code=6, message="unexpected token\n  year ==== 3"),
            "cannot read the filter: unexpected token",
        ),
        (MilvusException(code=65535, message="cannot parse expression: x"), "cannot read the filter: cannot parse"),
        (MilvusException(code=1100, message="m" * 999), "Milvus refused the call: mmm"),
    ],
)
def test_failures_are_explained(error: Exception, said: str) -> None:
    """Each says where, what, and the next step, in one line of bounded length."""
    explained = failures.explain(error, "collection 'c' at http://host:1", "MILVUS_TOKEN")
    assert str(explained).startswith("collection 'c' at http://host:1: ")
    assert said in str(explained)
    assert len(str(explained)) < 420
    assert "\n" not in str(explained)
    assert explained.__cause__ is error


def test_a_collection_that_a_loading_search_finds_not_loaded() -> None:
    """Who has `load: true` is not told to set it."""
    words = str(failures.explain(MilvusException(code=101, message="x"), "here", loads=True))
    assert "`load: true`" not in words
    assert "check the server's log" in words


class Troubled:
    """A connection whose searches fail as it is told before they go through to a real one."""

    is_lite = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __init__(self, real: Any, trouble: Callable[[int, int], Exception | None]) -> None:
        self.real = real
        self.trouble = trouble
        self.sizes: list[int] = []
        self.deadlines: list[Deadline] = []

    def search(self, arguments: dict[str, Any], deadline: Deadline) -> Any:
        self.sizes.append(len(arguments["data"]))
        self.deadlines.append(deadline)
        if error := self.trouble(len(self.sizes), self.sizes[-1]):
            raise error
        return self.real.search(arguments, deadline)

    async def asearch(self, arguments: dict[str, Any], deadline: Deadline) -> Any:
        return await asyncio.to_thread(self.search, arguments, deadline)


def troubled(stage: MilvusSearch, trouble: Callable[[int, int], Exception | None]) -> Troubled:
    """Put trouble between an open stage and its connection."""
    opened = stage.opened
    opened.connection = connection = Troubled(opened.connection, trouble)
    return connection


@pytest.fixture(params=["sync", "async"])
def run_batch(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Both ways to run a batch."""

    def run(pipeline: Pipeline, *arguments: Any, **options: Any) -> Any:
        if request.param == "sync":
            return pipeline.run_batch(*arguments, **options)
        return asyncio.run(pipeline.arun_batch(*arguments, **options))

    return run


@pytest.fixture
def quick(lite: Engine) -> Any:
    """An open pipeline that does not wait long between attempts."""
    stage = lite.stage(retry=RetrySettings(attempts=3, min_wait=0.001, max_wait=0.01))
    pipeline = Pipeline([stage]).open()
    connection = stage.opened.connection
    yield pipeline
    stage.opened.connection = connection
    pipeline.close()


def test_answers_that_are_too_large_are_asked_for_in_halves(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A batch is split until its answers fit; the results are those of the whole."""
    queries = [lite.query(seed) for seed in range(11)]
    whole = run_batch(quick, queries)
    connection = troubled(quick.stages[0], lambda call, size: TOO_LARGE if size > 3 else None)
    assert run_batch(quick, queries) == whole
    assert max(size for size in connection.sizes if size <= 3) == 3


def test_one_query_whose_answer_is_too_large(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """What cannot be split fails, and says what to ask less of."""
    troubled(quick.stages[0], lambda call, size: TOO_LARGE)
    with pytest.raises(StageError, match="lower `limit`"):
        run_batch(quick, [lite.query(0), lite.query(1)])


def test_a_limit_on_calls_is_waited_for(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """The same status for too many calls makes no smaller calls, and the same one is made again."""
    limited = RpcError(EXHAUSTED, "slow down")
    connection = troubled(quick.stages[0], lambda call, size: limited if call < 3 else None)
    assert {result.status for result in run_batch(quick, [lite.query(seed) for seed in range(4)])} == {"ok"}
    assert connection.sizes == [4, 4, 4]


def test_passing_failures_are_ridden_out(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """Two lost connections, then the answer."""
    lost = MilvusException(code=2, message="lost")
    connection = troubled(quick.stages[0], lambda call, size: lost if call < 3 else None)
    assert [len(result) for result in run_batch(quick, [lite.query(0)])] == [10]
    assert connection.sizes == [1, 1, 1]


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_all_attempts_share_one_deadline(lite: Engine, quick: Pipeline, run_batch: Any, timeout: float | None) -> None:
    """Where no time is given either, a frozen server does not hold a search for the sum of its attempts."""
    lost = MilvusException(code=2, message="lost")
    connection = troubled(quick.stages[0], lambda call, size: lost if call < 3 else None)
    run_batch(quick, [lite.query(0)], timeout=timeout)
    assert len(connection.deadlines) == 3
    assert {deadline.budget for deadline in connection.deadlines} == {timeout or CALL_SECONDS}
    assert len({deadline.at for deadline in connection.deadlines}) == 1


def test_failures_that_stay_end_the_batch(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A server that is gone is not asked once more for every other filter of the batch."""
    lost = MilvusException(code=2, message="lost")
    connection = troubled(quick.stages[0], lambda call, size: lost)
    queries = [lite.query(0, filter=f"year > {year}") for year in range(100)]
    results = run_batch(quick, queries, return_errors=True)
    assert all("cannot be reached" in str(result.error) for result in results)
    assert len(connection.sizes) <= 3 * 8


def test_bad_requests_are_made_once(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """What the server refuses is not repeated, and does not touch queries that it takes."""
    refused = MilvusException(code=65535, message="cannot parse expression: year ==== 3")
    connection = troubled(quick.stages[0], lambda call, size: refused if size == 2 else None)
    queries = [lite.query(0, filter="year > 3"), lite.query(1, filter="year > 3"), lite.query(2)]
    first, second, third = run_batch(quick, queries, return_errors=True)
    assert "cannot read the filter" in str(first.error)
    assert "cannot read the filter" in str(second.error)
    assert len(third) == 10
    assert sorted(connection.sizes) == [1, 2]


def test_a_collection_that_is_loaded_and_said_not_to_be(
    lite: Engine, quick: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is searched a few times with pauses, and not looked at anew for each."""
    asked: list[str] = []
    call = Connection.call
    monkeypatch.setattr(
        Connection,
        "call",
        lambda connection, deadline, *told: asked.append(told[0]) or call(connection, deadline, *told),
    )
    connection = troubled(quick.stages[0], lambda call, size: MilvusException(code=101, message="not loaded"))
    began = time.monotonic()
    with pytest.raises(StageError, match="though it was asked to load it"):
        quick.run(lite.query(0))
    seconds = time.monotonic() - began
    assert len(connection.sizes) == 9  # three attempts of three
    assert seconds > 0.6
    assert asked.count("has_collection") <= 1 + seconds


def test_one_late_call_takes_nothing_from_the_others(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """Of twenty filters the first hangs and the second is refused: their queries say so; the others are answered."""

    def hang(call: int, size: int) -> Exception | None:
        if size == 2:
            time.sleep(connection.deadlines[-1].remaining() or 0.0)
            return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED)
        return None

    connection = troubled(quick.stages[0], hang)
    queries = [
        *(lite.query(seed, filter="year > 3") for seed in (0, 1)),
        lite.query(2, filter="year ===="),
        *(lite.query(seed, filter=f"year > {seed}") for seed in range(4, 22)),
    ]
    results = run_batch(quick, queries, timeout=1.5, return_errors=True)
    assert [result.error and result.error.reason_code for result in results[:3]] == ["deadline", "deadline", "query"]
    for query, result in zip(queries[3:], results[3:], strict=True):
        assert [hit.id for hit in result] == [key for key, _ in lite.exact(query)[:10]]
    assert "milvus-search" not in [thread.name for thread in threading.enumerate()]


def test_answers_that_are_lacking_spoil_no_other_call(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A reply to fewer queries than were asked fails those, with where and what, and not the others of the batch."""
    connection = troubled(quick.stages[0], lambda call, size: None)
    whole = connection.search
    connection.search = lambda arguments, deadline: whole(arguments, deadline)[: len(arguments["data"]) % 2]
    first, *others = run_batch(
        quick, [lite.query(0), *(lite.query(seed, filter="year > 3") for seed in (1, 2))], return_errors=True
    )
    assert first.status == "ok"
    assert {other.error.reason_code for other in others} == {"bad_reply"}
    assert "things" in str(others[0].error)


def test_retries_are_told(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """The report says how often a search was made again; where it was not, it says nothing of it."""
    troubled(quick.stages[0], lambda call, size: RpcError(UNAVAILABLE) if call < 3 else None)
    first, second = run_batch(quick, [lite.query(0)])[0], run_batch(quick, [lite.query(0)])[0]
    assert first.report("milvus_search").details["retries"] == 2
    assert "retries" not in second.report("milvus_search").details


def test_a_wait_between_attempts_ends_with_the_connection(lite: Engine) -> None:
    """Whoever waits for a lost server learns at once that the stage was closed."""
    stage = lite.stage(retry=RetrySettings(attempts=2, min_wait=60, max_wait=60))
    with Pipeline([stage]) as pipeline:
        connection = troubled(stage, lambda call, size: RpcError(UNAVAILABLE))
        connection.closed = threading.Event()
        threading.Timer(0.2, connection.closed.set).start()
        with pytest.raises(StageError, match="cannot be reached"):
            pipeline.run(lite.query(0))
