"""What failed calls lead to: another attempt, smaller calls, an error with the next step."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
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
        self.code = lambda: status
        self.details = lambda: details


def at_connect(status: grpc.StatusCode, details: str = "the details") -> MilvusException:
    """Return what pymilvus's constructor raises, whatever the fault."""
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
    """Errors are classified by class, then by status, then by code: codes 1 and 2 are ambiguous, and may have names."""
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
def test_what_failures_show_about_the_server(error: Exception, seconds: float, verdict: bool | None) -> None:
    """A short timeout shows nothing about the server, and an answer of any kind shows that it runs."""
    assert failures.shows_unreachable(error, seconds) is verdict


def test_an_error_that_is_its_own_cause() -> None:
    """An error that pymilvus raises `from` itself does not send the code into a loop."""
    error = MilvusException(code=2, message="lost")
    error.__cause__ = error
    assert failures.is_transient(error)
    assert "cannot be reached (lost)" in str(failures.explain(error, "here"))


@pytest.mark.parametrize(
    ("error", "message"),
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
def test_failures_are_explained(error: Exception, message: str) -> None:
    """Each message names the collection, the fault and the next step, in one line of limited length."""
    explained = failures.explain(error, "collection 'c' at http://host:1", "MILVUS_TOKEN")
    assert str(explained).startswith("collection 'c' at http://host:1: ")
    assert message in str(explained)
    assert len(str(explained)) < 420
    assert "\n" not in str(explained)
    assert explained.__cause__ is error


def test_a_collection_that_a_loading_search_finds_not_loaded() -> None:
    """A stage with `load: true` is not advised to set it."""
    message = str(failures.explain(MilvusException(code=101, message="x"), "here", loads=True))
    assert "`load: true`" not in message
    assert "check the server's log" in message


class FailingConnection:
    """A connection whose searches fail as a function decides, before they reach the real one."""

    is_lite = False

    def __init__(self, real: Any, fail: Callable[[int, int], Exception | None]) -> None:
        self.real = real
        self.fail = fail
        self.sizes: list[int] = []
        self.deadlines: list[Deadline] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def search(self, arguments: dict[str, Any], deadline: Deadline) -> Any:
        self.sizes.append(len(arguments["data"]))
        self.deadlines.append(deadline)
        if error := self.fail(len(self.sizes), self.sizes[-1]):
            raise error
        return self.real.search(arguments, deadline)

    async def asearch(self, arguments: dict[str, Any], deadline: Deadline) -> Any:
        return await asyncio.to_thread(self.search, arguments, deadline)


def make_fail(stage: MilvusSearch, fail: Callable[[int, int], Exception | None]) -> FailingConnection:
    """Have the searches of an open stage fail: ``fail`` gets the number of the call and of its queries."""
    stage.opened.connection = connection = FailingConnection(stage.opened.connection, fail)
    return connection


@pytest.fixture
def quick(lite: Engine) -> Iterator[Pipeline]:
    """An open pipeline with short waits between attempts."""
    stage = lite.stage(retry=RetrySettings(attempts=3, min_wait=0.001, max_wait=0.01))
    with Pipeline([stage]) as pipeline:
        connection = stage.opened.connection
        yield pipeline
        stage.opened.connection = connection


LOST = MilvusException(code=2, message="lost")


def test_answers_that_are_too_large_are_requested_in_halves(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A batch is split until its answers fit; the results are those of the whole."""
    queries = [lite.query(seed) for seed in range(11)]
    whole = run_batch(quick, queries)
    connection = make_fail(quick.stages[0], lambda call, size: TOO_LARGE if size > 3 else None)
    assert run_batch(quick, queries) == whole
    assert max(size for size in connection.sizes if size <= 3) == 3


def test_one_query_whose_answer_is_too_large(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A single query whose answer is too large fails, and the error says what to reduce."""
    make_fail(quick.stages[0], lambda call, size: TOO_LARGE)
    with pytest.raises(StageError, match="lower `limit`"):
        run_batch(quick, [lite.query(0), lite.query(1)])


@pytest.mark.parametrize("error", [LOST, RpcError(EXHAUSTED, "slow down")], ids=["lost", "rate limited"])
def test_passing_failures_are_repeated(lite: Engine, quick: Pipeline, run_batch: Any, error: Exception) -> None:
    """A call that is lost or rate limited is repeated as it was, and the report counts the retries."""
    connection = make_fail(quick.stages[0], lambda call, size: error if call < 3 else None)
    queries = [lite.query(seed) for seed in range(4)]
    results = run_batch(quick, queries)
    assert {result.status for result in results} == {"ok"}
    assert connection.sizes == [4, 4, 4]
    assert results[0].report("milvus_search").details["retries"] == 2
    assert "retries" not in run_batch(quick, queries)[0].report("milvus_search").details


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_all_attempts_share_one_deadline(lite: Engine, quick: Pipeline, run_batch: Any, timeout: float | None) -> None:
    """Even without a timeout, a frozen server does not hold a search for the sum of its attempts."""
    connection = make_fail(quick.stages[0], lambda call, size: LOST if call < 3 else None)
    run_batch(quick, [lite.query(0)], timeout=timeout)
    assert len(connection.deadlines) == 3
    assert {deadline.budget for deadline in connection.deadlines} == {timeout or CALL_SECONDS}
    assert len({deadline.at for deadline in connection.deadlines}) == 1


def test_lasting_failures_end_the_batch(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A server that is gone is not called again for every other filter of the batch."""
    connection = make_fail(quick.stages[0], lambda call, size: LOST)
    queries = [lite.query(0, filter=f"year > {year}") for year in range(100)]
    results = run_batch(quick, queries, return_errors=True)
    assert all("cannot be reached" in str(result.error) for result in results)
    assert len(connection.sizes) <= 3 * 8


def test_bad_requests_are_made_once(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A call that the server refuses is not repeated, and does not affect the other queries."""
    refused = MilvusException(code=65535, message="cannot parse expression: year ==== 3")
    connection = make_fail(quick.stages[0], lambda call, size: refused if size == 2 else None)
    queries = [lite.query(0, filter="year > 3"), lite.query(1, filter="year > 3"), lite.query(2)]
    first, second, third = run_batch(quick, queries, return_errors=True)
    assert "cannot read the filter" in str(first.error)
    assert "cannot read the filter" in str(second.error)
    assert len(third) == 10
    assert sorted(connection.sizes) == [1, 2]


def test_a_collection_that_is_reported_as_loaded_and_not_loaded(
    lite: Engine, quick: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is searched a few times with pauses, and inspected once a second, not for each search."""
    calls: list[str] = []
    call = Connection.call
    monkeypatch.setattr(
        Connection,
        "call",
        lambda connection, deadline, *arguments: calls.append(arguments[0]) or call(connection, deadline, *arguments),
    )
    connection = make_fail(quick.stages[0], lambda call, size: MilvusException(code=101, message="not loaded"))
    began = time.monotonic()
    with pytest.raises(StageError, match="though it was asked to load it"):
        quick.run(lite.query(0))
    seconds = time.monotonic() - began
    assert len(connection.sizes) == 9  # three attempts of three rounds
    assert seconds > 0.6
    assert calls.count("has_collection") <= 1 + seconds


def test_one_late_call_does_not_delay_the_others(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """Of twenty filters the first hangs and the second is refused: their queries fail, and the others are answered."""

    def hang(call: int, size: int) -> Exception | None:
        if size == 2:
            time.sleep(connection.deadlines[-1].remaining() or 0.0)
            return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED)
        return None

    connection = make_fail(quick.stages[0], hang)
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


def test_a_reply_with_too_few_answers(lite: Engine, quick: Pipeline, run_batch: Any) -> None:
    """A reply with fewer answers than queries fails those queries, with the collection, and not the others."""
    connection = make_fail(quick.stages[0], lambda call, size: None)
    whole = connection.search
    connection.search = lambda arguments, deadline: whole(arguments, deadline)[: len(arguments["data"]) % 2]
    queries = [lite.query(0), *(lite.query(seed, filter="year > 3") for seed in (1, 2))]
    first, *others = run_batch(quick, queries, return_errors=True)
    assert first.status == "ok"
    assert {other.error.reason_code for other in others} == {"bad_reply"}
    assert "things" in str(others[0].error)


def test_a_wait_between_attempts_ends_with_the_connection(lite: Engine) -> None:
    """A query that waits for its next attempt fails at once when the connection is closed."""
    stage = lite.stage(retry=RetrySettings(attempts=2, min_wait=60, max_wait=60))
    with Pipeline([stage]) as pipeline:
        connection = make_fail(stage, lambda call, size: RpcError(UNAVAILABLE))
        connection.closed = threading.Event()
        threading.Timer(0.2, connection.closed.set).start()
        with pytest.raises(StageError, match="cannot be reached"):
            pipeline.run(lite.query(0))
        stage.opened.connection = connection.real
