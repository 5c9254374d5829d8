"""The life of a hosted reranker: several event loops, closing while in use, Ctrl-C, and that nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from milvus_pipeline import Pipeline, ServiceError, StageError
from milvus_pipeline.plugin import RerankJob
from support.fake_stages.basic import ListedSearch
from support.hosted import (
    KEY_VARIABLE,
    PATIENT,
    QUERY,
    TEXTS,
    abatch,
    batch,
    both_ways,
    eventually,
    keyed,
    scored,
    stage,
)
from support.processes import environment
from support.standins import StandIn, relevance

JOBS = [RerankJob(QUERY, TEXTS)] * 6
RIGHT = [relevance(QUERY, text) for text in TEXTS]
HANGS = 30.0


@both_ways
def test_nothing_is_left_after_close(way):
    """No thread, no connection, no task and no socket that is not closed, also after errors and timeouts."""
    before = set(threading.enumerate())
    with StandIn("cohere") as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        scored(way, server, JOBS)
        server.always(server.error(503))
        scored(way, server, JOBS)
        server.hold()
        assert scored(way, server, JOBS, timeout=0.3).failures
        server.release()
        assert eventually(lambda: server.open_connections == 0)
        gc.collect()
        assert eventually(lambda: {each.name for each in set(threading.enumerate()) - before} <= {"stand-in cohere"})
    assert [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)] == []


@pytest.mark.parametrize("debug", [False, True])
def test_event_loops_one_after_the_other(debug):
    """A stage that is opened once serves each; what an event loop leaves open ends with it."""
    with StandIn("cohere") as server, keyed(server), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        reranker = stage(server)
        reranker.open()
        for _ in range(3):
            assert asyncio.run(abatch(reranker, JOBS), debug=debug).scores == [RIGHT] * 6
            assert eventually(lambda: server.open_connections == 0)
        assert batch(reranker, JOBS).scores == [RIGHT] * 6
        reranker.close()
        gc.collect()
        assert eventually(lambda: server.open_connections == 0)
    assert [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)] == []


def test_event_loops_at_once():
    """Each has its own connections, and closing the stage closes those of all."""
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server)
        reranker.open()
        ready = threading.Barrier(3)

        async def main():
            outcomes = [await abatch(reranker, JOBS) for _ in range(3)]
            await asyncio.to_thread(ready.wait, HANGS)
            return outcomes

        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(asyncio.run, main()) for _ in range(3)]
            outcomes = [outcome for call in calls for outcome in call.result(HANGS)]
        assert all(outcome.scores == [RIGHT] * 6 for outcome in outcomes)
        reranker.close()
        assert eventually(lambda: server.open_connections == 0)


def test_closing_in_another_thread_closes_the_connections_of_an_event_loop():
    """It is done by the event loop itself, while that runs."""
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server)

        async def main():
            await asyncio.to_thread(reranker.open)
            await abatch(reranker, JOBS)
            assert server.open_connections > 0
            await asyncio.to_thread(reranker.close)
            with pytest.raises(StageError, match="is not open; call open"):
                await abatch(reranker, JOBS)
            await asyncio.to_thread(eventually, lambda: server.open_connections == 0)

        asyncio.run(main())
        assert server.open_connections == 0


@both_ways
@pytest.mark.parametrize("where", ["for a slot", "for the rate", "between attempts"])
def test_closing_ends_what_waits(way, where):
    """What is under way when a stage is closed may end, and nothing else is waited for or sent."""
    began = time.monotonic()
    with StandIn("cohere") as server, keyed(server):
        fields = {"max_concurrency": 1} if where == "for a slot" else {}
        if where == "for the rate":
            fields["requests_per_minute"] = 1
        if where == "between attempts":
            server.always(server.error(429).but(headers={"retry-after": "30"}))
        reranker = stage(server, retry=PATIENT, **fields)
        reranker.open()
        if where == "for a slot":
            server.hold()
        call = batch if way == "sync" else lambda *given: asyncio.run(abatch(*given))
        with ThreadPoolExecutor(1) as pool:
            called = pool.submit(call, reranker, JOBS[:2])
            server.wait_for(2 if where == "between attempts" else 1)
            time.sleep(0.05)  # the others have begun to wait
            reranker.close()
            server.release()
            outcome = called.result(HANGS)
        assert len(server.requests) <= 2
    assert time.monotonic() - began < HANGS - 10
    closed = [
        error
        for error in outcome.failures.values()
        if "the pipeline was closed while a query was running" in str(error)
    ]
    assert len(closed) == (2 if where == "between attempts" else 1)
    assert not any(isinstance(error, ServiceError) for error in closed)


def test_a_pipeline_that_is_closed_ends_what_it_runs_first():
    """Its stages stay open for the runs that are under way."""
    with StandIn("cohere") as server, keyed(server):
        server.hold()
        pipeline = Pipeline([ListedSearch(documents=TEXTS), stage(server)]).open()
        with ThreadPoolExecutor(1) as pool:
            called = pool.submit(pipeline.run_batch, [QUERY] * 3)
            server.wait_for(3)
            pipeline.close()
            server.release()
            results = called.result(HANGS)
    assert [result.status for result in results] == ["ok"] * 3
    assert not pipeline.stage("cohere").is_open


PRESSED_AGAIN = 5.0
"""Seconds until Ctrl-C is pressed again: one in the instant before a blocking read is seen only after the read."""


@pytest.mark.parametrize(("queries", "requests_per_minute"), [(1, None), (6, None), (6, 2)])
def test_ctrl_c_ends_a_blocking_call(queries, requests_per_minute):
    """At once, though requests are under way; what has not begun is not sent."""
    began = time.monotonic()
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, max_concurrency=2, requests_per_minute=requests_per_minute)
        reranker.open()
        server.hold()
        main, ended = threading.main_thread().ident, threading.Event()

        def interrupt():
            server.wait_for(min(queries, 2))
            signal.pthread_kill(main, signal.SIGINT)
            while not ended.wait(PRESSED_AGAIN):
                signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            batch(reranker, JOBS[:queries])
        ended.set()
        thread.join()
        server.release()
        server.wait_until_idle()
        reranker.close()
        assert eventually(lambda: server.open_connections == 0)
        assert len(server.requests) == min(queries, 2)
    assert time.monotonic() - began < HANGS - 10


SCRIPT = """
import sys
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages import Cohere
import asyncio
way, url, queries = sys.argv[1], sys.argv[2], int(sys.argv[3])
stage = Cohere(base_url=url, api_key_env="STANDIN_API_KEY", max_concurrency=2)
stage.open()
jobs = [RerankJob("q", ["one", "two"])] * queries
if way == "sync":
    stage.score_batch(jobs, Context(Deadline(), queries))
else:
    asyncio.run(stage.ascore_batch(jobs, Context(Deadline(), queries)))
"""


@pytest.mark.parametrize(("way", "queries"), [("sync", 1), ("sync", 6), ("async", 6)])
def test_ctrl_c_ends_the_process(way, queries):
    """Without waiting for replies that do not come."""
    with StandIn("cohere") as server:
        server.hold()
        arguments = [sys.executable, "-c", SCRIPT, way, server.url, str(queries)]
        with_key = {**os.environ, KEY_VARIABLE: server.key}
        with subprocess.Popen(arguments, env=with_key, stderr=subprocess.PIPE, text=True) as process:
            server.wait_for(min(queries, 2), timeout=60)
            while process.poll() is None:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PRESSED_AGAIN)
            stderr_text = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in stderr_text
    assert len(server.requests) == min(queries, 2)


TIDY = """
import asyncio, gc, sys
from support.hosted import QUERY, TEXTS, abatch, batch, keyed, stage
from support.processes import environment
from support.standins import StandIn
from milvus_pipeline.plugin import RerankJob
jobs = [RerankJob(QUERY, TEXTS)] * 4
with StandIn("cohere") as server, keyed(server):
    reranker = stage(server)
    reranker.open()
    batch(reranker, jobs)
    asyncio.run(abatch(reranker, jobs))
    if sys.argv[1] == "closed":
        reranker.close()
gc.collect()
"""


@pytest.mark.parametrize("how", ["closed", "open"])
def test_a_process_ends_tidily(how):
    """With every warning shown, there is none about sockets, event loops or coroutines, closed or not."""
    arguments = [sys.executable, "-X", "dev", "-W", "error", "-c", TIDY, how]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    # A stage that stays open leaves the idle sockets of blocking calls to the end of the process.
    slow_steps = [line for line in done.stderr.splitlines() if line.startswith("Executing <")]  # of a busy machine
    assert how == "open" or done.stderr.splitlines() == slow_steps
    assert not any(word in done.stderr for word in ("transport", "loop", "never awaited"))
