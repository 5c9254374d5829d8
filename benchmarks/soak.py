"""A soak: threads and an event loop search at a steady load while the server, the network and a service fail in turn.

    python benchmarks/soak.py [--seconds 600] [--rate 60] [--callers 16] [--deadline 2]

A standalone Milvus server (the package `milvus`) is searched through a proxy that breaks connections; a stand-in for
Cohere's API reranks the hits, through another proxy. The faults take turns, and each lasts for a third of its turn.
The right answer of every query is known. A line is printed every 30 s, and at the end a table of the faults, what has
grown or was left, and a verdict. The exit status is 1 if an answer was wrong, was later than its deadline by more
than a second, or failed without a reason code, if the pipeline had not recovered at the end of a fault's turn, or if
anything was left. The proxies and the stand-in run in this process, and count in its figures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from milvus_pipeline import BreakerSettings, Pipeline, Query
from milvus_pipeline.errors import REASON_CODES
from milvus_stages import Cohere, MilvusSearch
from support.known_collection import COLLECTION, make_known_collection, questions
from support.load import Outcome, Question, ask, ask_async, loop_in_thread, outcome_text, run_on
from support.milvus_server import MilvusServer, NoServer, running_server
from support.ports import free_ports
from support.process_leaks import SETTLE_SECONDS, other_tasks, socket_count, thread_names
from support.proxy import Proxy
from support.standins import Reply, StandIn, ranking

CODES = REASON_CODES - {"error"}
"""The reason codes that a query may fail with here."""

TURN_SECONDS = 15.0
"""Seconds of a fault's turn; fewer in a short soak."""

WELL_SECONDS = 8.0
"""Seconds after a fault until all answers must be complete again: time to load a collection or retry a server."""

LATE_SECONDS = 1.0
"""Seconds that an answer may be late: this process also runs the proxies and the stand-in."""

GROWTH = 0.1
"""The share of its memory after the warm-up by which the process may grow."""


@dataclass(frozen=True)
class Fault:
    """Something that breaks, and what repairs it."""

    name: str
    begin: Callable[[], Any]
    end: Callable[[], Any]


@dataclass
class Turn:
    """The outcomes in the turns of one fault."""

    asked: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    back: list[float] = field(default_factory=list)  # seconds from a fault's end to the last incomplete answer


class Tally:
    """Counts outcomes: since the last line, of the present fault, and in all."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.lock = threading.Lock()
        self.turns: dict[str, Turn] = {}
        self.total: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.late = 0
        self.slowest = 0.0
        self.examples: list[str] = []
        self._turn = self.turns["(warm-up)"] = Turn()
        self._since: Counter[str] = Counter()
        self._seconds: list[float] = []
        self._last_bad = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        with self.lock:
            code = outcome.code
            status = outcome.result.status if outcome.result is not None else "failed"
            for counter in (self.total, self._since, self._turn.codes):
                counter[code] += 1
            self.statuses[status] += 1
            self._turn.asked += 1
            self._seconds.append(outcome.seconds)
            self._turn.slowest = max(self._turn.slowest, outcome.seconds)
            self.slowest = max(self.slowest, outcome.seconds)
            if code != "ok":
                self._last_bad = time.monotonic()
            late = outcome.seconds > self.deadline + LATE_SECONDS
            self.late += late
            if (late or code not in {"ok", *CODES}) and len(self.examples) < 10:
                self.examples.append(outcome_text(outcome))

    def turn(self, name: str) -> None:
        """Begin the turn of the next fault."""
        with self.lock:
            self._turn = self.turns.setdefault(name, Turn())

    def ended(self, at: float) -> None:
        """End the turn, whose fault ended at this time."""
        with self.lock:
            self._turn.back.append(max(0.0, self._last_bad - at))

    def line(self) -> tuple[Counter[str], list[float]]:
        """Return the codes and the seconds of the outcomes since the last line."""
        with self.lock:
            since, self._since = self._since, Counter()
            seconds, self._seconds = self._seconds, []
        return since, seconds


def main() -> int:
    """Run the soak, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=60, help="queries a second, of all callers together")
    parser.add_argument("--callers", type=int, default=16, help="half of them threads, half of them tasks")
    parser.add_argument("--deadline", type=float, default=2, metavar="SECONDS")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what libraries log about the connections that we break
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with running_server(Path(scratch)) as server:
                make_known_collection(server.uri)
                return soak(server, given)
        except NoServer as reason:
            print(f"skipped: no Milvus server: {reason}", file=sys.stderr)
            return 0


def soak(server: MilvusServer, given: argparse.Namespace) -> int:
    """Warm up, load, break and repair, and judge."""
    tally = Tally(given.deadline)
    with ExitStack() as running:
        service = running.enter_context(StandIn("cohere", port=free_ports(1)[0]))
        os.environ[Cohere.key_names[0]] = service.key
        to_milvus = running.enter_context(Proxy(server.port))
        to_service = running.enter_context(Proxy(int(service.url.rpartition(":")[2])))
        faults = faults_of(server, service, to_milvus, to_service)
        asked_for = reranked_questions()
        with calling(search(to_milvus.url, to_service.url), asked_for, given, Tally(given.deadline)):
            time.sleep(1)  # what libraries create once is created now
        threads, sockets = settled(None)
        with calling(search(to_milvus.url, to_service.url), asked_for, given, tally) as tasks:
            memory = broken_in_turn(faults, given.seconds, tally, service, tasks)
        left = settled((threads, sockets))
    return verdict(tally, memory, left[0] - threads, left[1] - sockets, tasks[-1])


def search(milvus: str, service: str) -> Pipeline:
    """Return the pipeline under test: a search, and a reranker that may be skipped."""
    breaker = BreakerSettings(wait=1)
    return Pipeline(
        [
            MilvusSearch(uri=milvus, collection=COLLECTION, index_type="FLAT", breaker=breaker),
            Cohere(base_url=service, timeout=0.5, max_concurrency=64, breaker=breaker, on_error="skip"),
        ]
    )


def reranked_questions() -> Sequence[Question]:
    """Return questions with the keys of the hits as the reranker orders them, and as the search does."""
    found = []
    for number, question in enumerate(questions()):
        text = f"which one is text {number * 17}?"
        order = ranking(text, [f"text {key}" for key in question.keys])
        keys = [question.keys[index] for index, _ in order]
        found.append(Question(Query(text, vector=question.query.vector), keys, question.keys))
    return found


def faults_of(server: MilvusServer, service: StandIn, to_milvus: Proxy, to_service: Proxy) -> list[Fault]:
    """Return every fault, in the order of their turns."""

    def release() -> None:
        from pymilvus import MilvusClient

        client = MilvusClient(server.uri, timeout=10, dedicated=True)
        client.release_collection(COLLECTION, timeout=60)
        client.close()

    def nothing() -> None:
        """Repair nothing: the fault ends by itself."""

    network = []
    for name, proxy in (("Milvus", to_milvus), ("service", to_service)):
        network += [
            Fault(f"{name}: connections closed once", proxy.cut, proxy.heal),
            Fault(f"{name}: connections reset", lambda proxy=proxy: proxy.reset(new=True), proxy.heal),
            Fault(f"{name}: slow", lambda proxy=proxy: proxy.delay(0.1), proxy.heal),
            Fault(f"{name}: silent", proxy.freeze, proxy.heal),
            Fault(f"{name}: gone", proxy.refuse, proxy.heal),
        ]
    late = Reply(200, b"", delay=60)
    return [
        *network,
        Fault("Milvus: stands still", server.freeze, server.thaw),
        Fault("collection released", release, nothing),
        Fault("service: 500", lambda: service.always(service.error(500)), service.clear),
        Fault("service: 429", lambda: service.always(service.error(429)), service.clear),
        Fault("service: no reply", lambda: service.always(late), service.clear),
    ]


@contextmanager
def calling(
    pipeline: Pipeline, asked_for: Sequence[Question], given: argparse.Namespace, tally: Tally
) -> Iterator[list[int]]:
    """Let callers query at a steady rate until the block ends; then the pipeline is closed.

    Yields:
        A list to which the number of tasks on the event loop is appended every now and then, at last those left.
    """
    stop, tasks = threading.Event(), [0]
    period = given.callers / given.rate

    def in_thread(number: int) -> None:
        for question in itertools.islice(itertools.cycle(asked_for), number * 7, None):
            began = time.monotonic()
            tally.add(ask(pipeline, question, given.deadline))
            if stop.wait(max(0.0, began + period - time.monotonic())):
                return

    async def in_task(number: int) -> None:
        for question in itertools.islice(itertools.cycle(asked_for), number * 7, None):
            began = time.monotonic()
            tally.add(await ask_async(pipeline, question, given.deadline))
            await asyncio.sleep(max(0.0, began + period - time.monotonic()))
            tasks.append(len(asyncio.all_tasks()))
            del tasks[:-2]
            if stop.is_set():
                return

    pipeline.open()
    threads = [threading.Thread(target=in_thread, args=(number,)) for number in range(given.callers // 2)]
    for thread in threads:
        thread.start()
    numbers = range(given.callers // 2, given.callers)
    with loop_in_thread("soak") as loop:
        futures = [asyncio.run_coroutine_threadsafe(in_task(number), loop) for number in numbers]
        try:
            yield tasks
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            for future in futures:
                future.result(60)
            run_on(loop, pipeline.aclose())
            tasks.append(len(run_on(loop, other_tasks())))


def broken_in_turn(
    faults: Sequence[Fault], seconds: float, tally: Tally, service: StandIn, tasks: list[int]
) -> list[tuple[float, float]]:
    """Give every fault its turn, repeatedly; return time and memory of this process after each turn."""
    share = min(TURN_SECONDS, 0.9 * seconds / len(faults))
    every = min(30.0, seconds / 4)
    began = time.monotonic()
    ending, next_line = began + seconds, began + every
    memory = []
    print(f"{len(faults)} faults, each for {share / 3:.1f} s of {share:.1f} s; deadline {tally.deadline:g} s")

    def wait(until: float) -> None:
        nonlocal next_line
        while (now := time.monotonic()) < until:
            if now >= next_line:
                print_line(now - began, tally, tasks)
                next_line += every
            time.sleep(max(0.0, min(until, next_line) - time.monotonic()))

    wait(began + 0.1 * seconds)
    for fault in itertools.cycle(faults):
        start = time.monotonic()
        if start + share > ending:
            break
        tally.turn(fault.name)
        fault.begin()
        wait(start + share / 3)
        fault.end()
        repaired = time.monotonic()
        wait(start + share)
        tally.ended(repaired)
        service.clear()  # it remembers every request
        memory.append((time.monotonic() - began, resident()))
    tally.turn("(after)")
    wait(ending)
    print_line(time.monotonic() - began, tally, tasks)
    return memory


def print_line(elapsed: float, tally: Tally, tasks: list[int]) -> None:
    """Print the outcomes since the last line, and what the process holds."""
    codes, seconds = tally.line()
    middle, high, most = np.quantile(seconds, (0.5, 0.99, 1.0)) if seconds else (0.0, 0.0, 0.0)
    counts = ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))
    print(
        f"{elapsed:6.0f} s  {codes.total():6d} queries ({counts})  p50 {1000 * middle:.0f} ms, "
        f"p99 {1000 * high:.0f} ms, max {1000 * most:.0f} ms  {resident():.0f} MB, {len(thread_names())} threads, "
        f"{socket_count()} sockets, {tasks[-1]} tasks",
        flush=True,
    )


def verdict(tally: Tally, memory: list[tuple[float, float]], threads: int, sockets: int, tasks: int) -> int:
    """Print the table of faults, what has grown or was left, and the verdict; return the exit status."""
    print(f"\n{'fault':<34}{'queries':>9}{'whole':>8}{'slowest':>9}{'well after':>12}  lacking")
    for name, turn in tally.turns.items():
        lacking = ", ".join(f"{code} {count}" for code, count in turn.codes.most_common() if code != "ok")
        back = f"{max(turn.back):.1f} s" if turn.back else ""
        print(f"{name:<34}{turn.asked:>9}{turn.codes['ok']:>8}{turn.slowest:>8.2f}s{back:>12}  {lacking}")
    statuses = ", ".join(f"{status} {count}" for status, count in tally.statuses.most_common())
    print(f"\n{tally.total.total()} queries: {statuses}; slowest {tally.slowest:.2f} s")
    settled_in = memory[len(memory) // 3 :]
    times, sizes = (np.array(column) for column in zip(*settled_in, strict=True))
    slope = float(np.polyfit(times, sizes, 1)[0]) if len(sizes) > 2 else 0.0
    grown = slope * float(times[-1] - times[0])
    print(f"memory: {sizes[0]:.0f} MB after the warm-up, slope {60 * slope:+.2f} MB a minute, {grown:+.1f} MB in all")
    print(f"left at the end: {threads} threads, {sockets} sockets, {tasks} tasks")
    problems = {
        "wrong answers": tally.total["wrong"],
        "answers later than the deadline": tally.late,
        "failures without a code": sum(tally.total[code] for code in set(tally.total) - {"ok", "wrong", *CODES}),
        "turns that ended unwell": sum(back > WELL_SECONDS for turn in tally.turns.values() for back in turn.back),
        "grown memory": grown > GROWTH * sizes[0],
        "left threads, sockets or tasks": max(0, threads) + max(0, sockets) + tasks,
    }
    for example in tally.examples:
        print(f"  {example}")
    found = [f"{what}: {int(count)}" for what, count in problems.items() if count]
    print(f"verdict: {'; '.join(found) or 'all is well'}")
    return 1 if found else 0


def settled(wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Return the numbers of threads and sockets, once they are down to the expected ones or time is up."""
    deadline = time.monotonic() + (SETTLE_SECONDS if wanted else 1.0)
    while True:
        held = len(thread_names()), socket_count()
        if time.monotonic() > deadline or (wanted and held[0] <= wanted[0] and held[1] <= wanted[1]):
            return held
        time.sleep(0.1)


def resident() -> float:
    """Return the megabytes of memory that this process uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
