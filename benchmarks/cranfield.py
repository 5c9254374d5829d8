"""Measure retrieval and reranking on the Cranfield collection, end to end: ingest, search, rerank, evaluate.

    python benchmarks/cranfield.py [FOLDER] [--uri URI]

FOLDER has Cranfield in the files of BEIR: corpus.jsonl, queries.jsonl, qrels.tsv. Without ``--uri`` the collection
is a Milvus Lite file that is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from milvus_pipeline import Evaluation, Pipeline, SearchResult, evaluate, ingest, read_qrels, read_queries
from milvus_pipeline.files.lines import read_lines

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "shared/data/cranfield"
BATCH = 32


def main() -> int:
    """Print a line of measures for each stage that ranks, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--uri", help="a Milvus server; the collection `cranfield` there is replaced")
    given = parser.parse_args()
    if not (given.folder / "corpus.jsonl").is_file():
        print(f"skipped: no Cranfield collection in {given.folder}; pass its folder", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CRANFIELD_URI"] = given.uri or str(Path(scratch) / "cranfield.db")
        measure(given.folder)
    return 0


def measure(folder: Path, on_results: Callable[[str, Sequence[SearchResult]], None] | None = None) -> Evaluation:
    """Ingest, run all queries, and print the figures of every stage that ranks; see ``evaluate`` for ``on_results``."""
    pipeline = Pipeline.from_yaml(HERE / "cranfield.yaml")
    report = ingest(pipeline, (line.object() for line in read_lines(folder / "corpus.jsonl")), overwrite=True)
    print(f"{report.rows} documents encoded and inserted in {report.seconds:.1f} s")
    started = time.perf_counter()
    found = evaluate(
        pipeline,
        read_queries(folder / "queries.jsonl"),
        read_qrels(folder / "qrels.tsv"),
        batch_size=BATCH,
        on_results=on_results,
    )
    print(f"{found.judged} queries in {time.perf_counter() - started:.1f} s, {BATCH} at a time")
    table(found)
    return found


def table(found: Evaluation) -> None:
    """Print measures and time of each stage that returns hits, and the outcome of every comparison."""
    print(f"{'stage':<18}" + "".join(f"{name:>10}" for name in found.measures) + f"{'ms/query':>10}")
    for stage in found.systems[0].stages:
        if stage.measures:
            values = "".join(f"{stage.measures[name]:>10.4f}" for name in found.measures)
            print(f"{stage.stage:<18}{values}{1000 * stage.latency.mean:>10.1f}")
    for one in found.comparisons:
        print(
            f"{one.stage} against {one.baseline_stage}: {one.measure} {one.difference:+.4f} "
            f"({one.low:+.4f} to {one.high:+.4f}), corrected p {one.p_corrected:.2g}"
        )


if __name__ == "__main__":
    sys.exit(main())
