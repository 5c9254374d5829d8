"""The benchmark on Cranfield still runs, on a part of the collection that is small enough for a test."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUERIES, DOCUMENTS = 12, 150


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark as a module."""
    pytest.importorskip("ir_measures")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import cranfield
    finally:
        sys.path.remove(str(BENCHMARKS))
    return cranfield


@pytest.fixture(scope="module")
def part(cranfield, benchmark, tmp_path_factory):
    """A folder with the first queries, all documents judged for them, the two empty ones, and some others."""
    folder = tmp_path_factory.mktemp("cranfield")
    queries = benchmark.lines(cranfield / "queries.jsonl")[:QUERIES]
    asked = {query["_id"] for query in queries}
    qrels = [qrel for qrel in benchmark.judgements(cranfield / "qrels.tsv") if qrel.query_id in asked]
    judged = {qrel.doc_id for qrel in qrels} | {"471", "995"}
    corpus = benchmark.lines(cranfield / "corpus.jsonl")
    chosen = [document for document in corpus if document["_id"] in judged]
    chosen += [document for document in corpus if document["_id"] not in judged][: max(0, DOCUMENTS - len(chosen))]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in chosen))
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    rows = "".join(f"{qrel.query_id}\t{qrel.doc_id}\t{qrel.relevance}\n" for qrel in qrels)
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


@pytest.mark.parametrize("empty", ["471", "995"])
def test_the_empty_documents_are_in_the_collection(cranfield, benchmark, empty):
    """Cranfield has two documents without title and text, and the pipeline is not spared them."""
    (document,) = [line for line in benchmark.lines(cranfield / "corpus.jsonl") if line["_id"] == empty]
    assert not (document["title"] + document["text"]).strip()


def test_both_stages_are_measured(benchmark, part, monkeypatch, tmp_path, capsys, minilm):
    """Ingest, retrieval and late interaction run end to end, and each ranking stage gets its line of measures."""
    monkeypatch.setenv("CRANFIELD_URI", str(tmp_path / "cranfield.db"))
    measured = benchmark.measure(part)
    printed = capsys.readouterr().out
    assert list(measured) == ["milvus_search", "late_interaction"]
    assert all(0.3 < values["nDCG@10"] <= 1 for values in measured.values())
    assert measured["milvus_search"]["R@100"] == measured["late_interaction"]["R@100"]
    assert f"{QUERIES} queries in" in printed
    assert all(f"{values['nDCG@10']:.4f}" in printed for values in measured.values())
