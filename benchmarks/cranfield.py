"""Quality of retrieval and of reranking on the Cranfield collection, end to end: ingest, search, rerank, measure.

    python benchmarks/cranfield.py [FOLDER] [--uri URI]

FOLDER holds Cranfield in BEIR's file shapes: corpus.jsonl, queries.jsonl, qrels.tsv. Without ``--uri`` the collection
goes into a Milvus Lite file that is removed afterwards.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import ir_measures
from ir_measures import R, nDCG

from milvus_pipeline import Pipeline, Query, SearchResult, ingest

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "shared/data/cranfield"
MEASURES = [nDCG @ 10, R @ 100]
BATCH = 32


def main() -> int:
    """Print a line of measures for each stage that ranks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--uri", help="a Milvus server; the collection `cranfield` there is replaced")
    given = parser.parse_args()
    if not (given.folder / "corpus.jsonl").is_file():
        print(f"skipped: no Cranfield collection in {given.folder}; name its folder", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CRANFIELD_URI"] = given.uri or str(Path(scratch) / "cranfield.db")
        measure(given.folder)
    return 0


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Ingest, run all queries, and print and return the measures of every ranking stage."""
    pipeline = Pipeline.from_yaml(HERE / "cranfield.yaml")
    report = ingest(pipeline, lines(folder / "corpus.jsonl"), overwrite=True)
    print(f"{report.rows} documents encoded and inserted in {report.seconds:.1f} s")
    queries = [Query(line["text"], id=line["_id"]) for line in lines(folder / "queries.jsonl")]
    results: list[SearchResult] = []
    with pipeline:
        started = time.perf_counter()
        for start in range(0, len(queries), BATCH):
            results += pipeline.run_batch(queries[start : start + BATCH])
        print(f"{len(results)} queries in {time.perf_counter() - started:.1f} s, {BATCH} at a time")
    return table(results, judgements(folder / "qrels.tsv"))


def table(results: list[SearchResult], qrels: list[ir_measures.Qrel]) -> dict[str, dict[str, float]]:
    """Measures and time of each stage that gave its hits a rank."""
    measured = {}
    print(f"{'stage':<18}" + "".join(f"{measure!s:>10}" for measure in MEASURES) + f"{'ms/query':>10}")
    for stage in results[0].hits[0].ranks:
        values = ir_measures.calc_aggregate(MEASURES, qrels, ranking(results, stage))
        milliseconds = 1000 * sum(r.report(stage).seconds / r.report(stage).batch_size for r in results) / len(results)
        print(f"{stage:<18}" + "".join(f"{values[m]:>10.4f}" for m in MEASURES) + f"{milliseconds:>10.1f}")
        measured[stage] = {str(measure): value for measure, value in values.items()}
    return measured


def ranking(results: list[SearchResult], stage: str) -> list[ir_measures.ScoredDoc]:
    """The order after a stage; ranks rather than scores, so that ties stay in the order that the reader would see."""
    return [
        ir_measures.ScoredDoc(str(result.query.id), str(hit.id), -float(hit.ranks[stage]))
        for result in results
        for hit in result
    ]


def lines(path: Path) -> list[dict[str, str]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judgements(path: Path) -> list[ir_measures.Qrel]:
    """The judgements of a BEIR qrels file."""
    with path.open(encoding="utf-8") as file:
        return [
            ir_measures.Qrel(row["query-id"], row["corpus-id"], int(row["score"]))
            for row in csv.DictReader(file, delimiter="\t")
        ]


if __name__ == "__main__":
    sys.exit(main())
