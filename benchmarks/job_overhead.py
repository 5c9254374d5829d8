"""Measure what a job costs per query above a bare loop over `run_batch`, and its memory over time.

    python benchmarks/job_overhead.py [--queries N] [--batch-size N] [--hits N] [--lite]

Retrieval is a stub that gives every query the same hits, or with ``--lite`` a small collection in a Milvus Lite file;
the reranker counts letters. So what remains is mostly the job's own work: reading queries from a file, overlapping
stages, writing JSON lines and the manifest. The loops it is compared with have their queries in memory; one discards
the results, the other writes the lines, too. If other programs use the machine, processor time is the fairer figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from milvus_pipeline import Hit, JobProgress, JsonLines, Pipeline, Query, SearchResult, run_job
from milvus_pipeline.plugin import Context, Reranker, Stage, register
from milvus_stages import MilvusSearch

WORDS = ("red", "green", "blue", "apple", "pear", "plum", "sky", "jam", "where", "what", "grows", "in", "the", "garden")
COLLECTION, DIM, ROWS = "overhead", 8, 1000
TENTHS = 10


class Spent(NamedTuple):
    """Seconds of wall time, and of processor time."""

    wall: float
    processors: float


@register("stub_search")
class StubSearch(Stage):
    """Gives every query the same hits."""

    gives: ClassVar[frozenset[str]] = frozenset({"hits", "text"})

    hits: int = 10

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Return at once."""
        found = [
            Hit(place, text(place, 12), 0.0, {}).ranked(self.name, 1.0 - place / 1000, place + 1)
            for place in range(self.hits)
        ]
        return [result.with_hits(found) for result in results]


@register("stub_encode")
class StubEncode(Stage):
    """Gives every query a vector that depends only on its text; loads no model."""

    needs: ClassVar[frozenset[str]] = frozenset({"query_text"})
    gives: ClassVar[frozenset[str]] = frozenset({"vector"})

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Return at once."""
        return [result.with_query(result.query.with_vector(vector(len(result.query.text)))) for result in results]


@register("letter_count")
class LetterCount(Reranker):
    """Scores a text by how often it has the query's first letter."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one score per text."""
        return [float(text.count(query[:1])) for text in texts]


def main() -> int:
    """Print the figures, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hits", type=int, default=10)
    parser.add_argument("--lite", action="store_true", help="search a Milvus Lite file instead of the stub")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        stages = lite_stages(Path(scratch), given.hits) if given.lite else [StubSearch(hits=given.hits)]
        with Pipeline([*stages, LetterCount()], name="overhead") as pipeline:
            measure(pipeline, Path(scratch), given.queries, given.batch_size)
    return 0


def measure(pipeline: Pipeline, scratch: Path, count: int, batch_size: int) -> list[float]:
    """Print microseconds per query and memory; return the MiB in memory after each tenth of the job.

    Raises:
        SystemExit: the job has not written one line for each query, in their order.
    """
    file, output = scratch / "queries.jsonl", scratch / "results.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"_id": query.id, "text": query.text}) + "\n" for query in queries(count))
    # A first run that does not count: afterwards, everything that is loaded once is in memory.
    run_job(pipeline, islice(queries(count), batch_size), scratch / "first.jsonl", batch_size=batch_size)
    memory: list[float] = []

    def note(progress: JobProgress) -> None:
        if progress.queries * TENTHS >= count * (len(memory) + 1):
            memory.append(resident())

    began = now()
    run_job(pipeline, file, output, batch_size=batch_size, on_progress=note)
    job = since(began)
    check_lines(output, count)
    bare, writing = loop(pipeline, count, batch_size, None), loop(pipeline, count, batch_size, scratch / "loop.jsonl")
    names = " -> ".join(stage.name for stage in pipeline.stages)
    print(f"{count} queries through {names}, {batch_size} a batch; {output.stat().st_size / 2**20:.0f} MiB written")
    print(f"{'us/query':<44}{'by the clock':>14}{'above bare':>12}{'on processors':>16}{'above bare':>12}")
    rows = {
        "run_batch in a loop, results thrown away": bare,
        "run_batch in a loop, JSON lines written": writing,
        "run_job": job,
    }
    for name, spent in rows.items():
        wall, above, own, own_above = (
            1e6 * seconds / count
            for seconds in (spent.wall, spent.wall - bare.wall, spent.processors, spent.processors - bare.processors)
        )
        print(f"{name:<44}{wall:>14.1f}{above:>12.1f}{own:>16.1f}{own_above:>12.1f}")
    print("MiB in memory after each tenth of the job:", " ".join(f"{size:.1f}" for size in memory))
    return memory


def loop(pipeline: Pipeline, count: int, batch_size: int, output: Path | None) -> Spent:
    """Return the time of a loop over ``run_batch``, which writes what a job writes, or nothing."""
    asked = queries(count)
    lines = JsonLines(figures=False)
    began = now()
    if output is None:
        while batch := list(islice(asked, batch_size)):
            pipeline.run_batch(batch, return_errors=True)
    else:
        with output.open("w", encoding="utf-8") as stream:
            while batch := list(islice(asked, batch_size)):
                stream.writelines(map(lines.text, pipeline.run_batch(batch, return_errors=True)))
    return since(began)


def now() -> Spent:
    """Return the present time of both clocks."""
    return Spent(time.perf_counter(), time.process_time())


def since(began: Spent) -> Spent:
    """Return the time since then."""
    ended = now()
    return Spent(ended.wall - began.wall, ended.processors - began.processors)


def check_lines(output: Path, count: int) -> None:
    """Raise SystemExit unless the file has one line for each query, in their order."""
    with output.open(encoding="utf-8") as stream:
        number = -1
        for number, line in enumerate(stream):
            result = json.loads(line)
            if result["query"]["id"] != str(number) or result["status"] != "ok" or not result["hits"]:
                raise SystemExit(f"{output.name}, line {number + 1}: is not the answer to query {number}")
    if number + 1 != count:
        raise SystemExit(f"{output.name}: {number + 1} lines for {count} queries")


def lite_stages(scratch: Path, hits: int) -> list[Stage]:
    """Return a search in a small collection, which is created here."""
    from pymilvus import DataType, MilvusClient

    uri = str(scratch / "overhead.db")
    client = MilvusClient(uri)
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
    schema.add_field("text", DataType.VARCHAR, max_length=200)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(COLLECTION, schema=schema, index_params=index)
    rows = [{"id": key, "vector": vector(key).tolist(), "text": text(key, 12)} for key in range(ROWS)]
    client.insert(COLLECTION, rows)
    client.close()
    search = MilvusSearch(
        uri=uri, collection=COLLECTION, text_field="text", index_type="FLAT", params={}, limit=hits, output_fields=[]
    )
    return [StubEncode(), search]


def queries(count: int) -> Iterator[Query]:
    """Return queries whose ids are their numbers."""
    return (Query(text(1000 + number, 3 + number % 7), id=str(number)) for number in range(count))


def text(seed: int, words: int) -> str:
    """Return some words, the same for the same seed."""
    return " ".join(WORDS[(seed * 7 + place * (seed % 5 + 1)) % len(WORDS)] for place in range(words))


def vector(seed: int) -> np.ndarray:
    """Return a vector of length 1, the same for the same seed."""
    values = np.cos(np.arange(1, DIM + 1) * (seed + 1), dtype=np.float32)
    return values / np.linalg.norm(values)


def resident() -> float:
    """Return the MiB that this process has in memory; 0 if the system does not report it."""
    try:
        with Path("/proc/self/status").open(encoding="ascii") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("VmRSS")) / 1024
    except OSError:
        return 0.0


if __name__ == "__main__":
    sys.exit(main())
