"""Compare a hosted reranker with the ideal time when many queries are under way, and with other clients.

    python benchmarks/hosted_concurrency.py [--queries N] [--documents N] [--latency SECONDS] [--concurrency N]

A stand-in for Cohere's API, in a separate process, answers every request after the latency. The ideal is the time
that the waves of requests must wait: ``ceil(queries / concurrency) * latency``. The contenders take turns for several
rounds; the median of each is printed. A semaphore gives Cohere's SDK the same limit of concurrency. The loop over one
query at a time is what the rerank functions of the PyMilvus model library do.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from milvus_pipeline import Hit, Pipeline, SearchResult
from milvus_pipeline.plugin import Context, Stage
from milvus_stages import Cohere

TESTS = Path(__file__).parents[1] / "tests"
KEY_VARIABLE = "BENCHMARK_COHERE_KEY"
WORDS = ("red", "green", "blue", "apple", "pear", "plum", "sky", "jam", "where", "what", "grows", "in", "the", "garden")


class Candidates(Stage):
    """Gives every query the same documents, as if a search had found them."""

    gives: ClassVar[frozenset[str]] = frozenset({"hits", "text"})

    documents: tuple[str, ...] = ()

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Return the same documents for each query."""
        hits = [Hit(place, text, 0.0, {}) for place, text in enumerate(self.documents)]
        return [result.with_hits(hits) for result in results]

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Do the same without a thread, which would distort the figures."""
        return self.process(results, context)


def main() -> int:
    """Print a line for each contender, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.1, metavar="SECONDS")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    documents = tuple(text(seed, 60) for seed in range(given.documents))
    queries = [text(1000 + seed, 8) for seed in range(given.queries)]
    ideal = math.ceil(given.queries / given.concurrency) * given.latency
    print(
        f"{given.queries} queries, {given.documents} documents each, {1000 * given.latency:.0f} ms latency, "
        f"{given.concurrency} requests at a time; ideal {ideal:.2f} s; median of {given.rounds} rounds"
    )
    with server(given.latency) as url:
        measured = measure(url, queries, documents, given.concurrency, given.rounds)
    print(f"{'':<44}{'seconds':>9}{'of ideal':>10}{'spread':>16}")
    for name, seconds in measured.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name:<44}{median:>9.2f}{median / ideal:>9.2f}x{spread:>16}")
    return 0


def measure(
    url: str, queries: list[str], documents: tuple[str, ...], concurrency: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every contender in every round, after a warm-up round that does not count."""
    reranker = Cohere(base_url=url, api_key_env=KEY_VARIABLE, max_concurrency=concurrency)
    pipeline = Pipeline([Candidates(documents=documents), reranker])
    asynchronous: dict[str, Callable[[], Awaitable[object]]] = {
        "async: arun, all queries gathered": lambda: gathered(pipeline, queries),
        "async: arun_batch": lambda: pipeline.arun_batch(queries),
        "Cohere's SDK, AsyncClientV2 and a semaphore": lambda: sdk(url, queries, documents, concurrency),
    }
    blocking: dict[str, Callable[[], object]] = {
        "sync: run_batch": lambda: pipeline.run_batch(queries),
        "sync: run, from as many threads": lambda: threaded(pipeline, queries, concurrency),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*asynchronous, *blocking)}

    async def timed(name: str) -> float:
        started = time.perf_counter()
        await asynchronous[name]()
        return time.perf_counter() - started

    with pipeline, asyncio.Runner() as runner:
        for number in range(rounds + 1):
            for name in seconds:
                if name in asynchronous:
                    took = runner.run(timed(name))
                else:
                    started = time.perf_counter()
                    blocking[name]()
                    took = time.perf_counter() - started
                if number:
                    seconds[name].append(took)
        runner.run(pipeline.aclose())
    seconds["Cohere's SDK, one query at a time"] = [one_at_a_time(url, queries, documents)]
    return seconds


async def gathered(pipeline: Pipeline, queries: list[str]) -> None:
    """Run every query separately, as the requests of a backend arrive."""
    await asyncio.gather(*(pipeline.arun(query) for query in queries))


def threaded(pipeline: Pipeline, queries: list[str], threads: int) -> None:
    """Run every query separately, in threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(pipeline.run, queries))


async def sdk(url: str, queries: list[str], documents: tuple[str, ...], concurrency: int) -> None:
    """Run the official asynchronous client, made once per round."""
    import cohere

    slots = asyncio.Semaphore(concurrency)
    async with cohere.AsyncClientV2(os.environ[KEY_VARIABLE], base_url=url) as client:

        async def one(query: str) -> None:
            async with slots:
                await client.rerank(model="rerank-v4.0-fast", query=query, documents=documents, top_n=len(documents))

        await asyncio.gather(*map(one, queries))


def one_at_a_time(url: str, queries: list[str], documents: tuple[str, ...]) -> float:
    """Return the seconds of the plain loop with the official client."""
    import cohere

    with cohere.ClientV2(os.environ[KEY_VARIABLE], base_url=url) as client:
        started = time.perf_counter()
        for query in queries:
            client.rerank(model="rerank-v4.0-fast", query=query, documents=documents, top_n=len(documents))
        return time.perf_counter() - started


@contextmanager
def server(latency: float) -> Iterator[str]:
    """The address of a stand-in that runs in a separate process."""
    command = [sys.executable, "-m", "support.standins", "cohere", "--latency", str(latency)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if not (read := process.stdout) or not (write := process.stdin):
            raise RuntimeError("the server has no pipes")
        url, key = read.readline().split()
        os.environ[KEY_VARIABLE] = key
        try:
            yield url
        finally:
            write.close()  # ends the stand-in


def text(seed: int, words: int) -> str:
    """Return words in an order that depends only on the seed."""
    return " ".join(WORDS[(seed * 7 + place * place * 3) % len(WORDS)] for place in range(words))


if __name__ == "__main__":
    sys.exit(main())
