"""The Cranfield benchmark runs on a small part of the collection, and its measures are those of the written run."""

import json
import sys
from pathlib import Path

import pytest

from milvus_pipeline import Pipeline
from milvus_pipeline.files.lines import read_lines
from milvus_pipeline.files.qrels import read_qrels
from milvus_pipeline.files.queries import read_queries
from milvus_pipeline.files.results import TrecRun

ir_measures = pytest.importorskip("ir_measures")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUERIES, DOCUMENTS = 12, 150


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import cranfield
    finally:
        sys.path.remove(str(BENCHMARKS))
    return cranfield


@pytest.fixture(scope="module")
def part(cranfield, tmp_path_factory):
    """A folder with the first queries, all documents judged for them, the two empty documents, and some others."""
    folder = tmp_path_factory.mktemp("cranfield")
    queries = [line.object() for line in read_lines(cranfield / "queries.jsonl")][:QUERIES]
    qrels = read_qrels(cranfield / "qrels.tsv")
    judged = {document for query in queries for document in qrels[query["_id"]]} | {"471", "995"}
    corpus = [line.object() for line in read_lines(cranfield / "corpus.jsonl")]
    chosen = [document for document in corpus if document["_id"] in judged]
    chosen += [document for document in corpus if document["_id"] not in judged][: max(0, DOCUMENTS - len(chosen))]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in chosen))
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n"
        + "".join(
            f"{query['_id']}\t{document}\t{grade}\n"
            for query in queries
            for document, grade in qrels[query["_id"]].items()
        )
    )
    return folder


def calculated(results, qrels, path):
    """Return what ir-measures computes for the results as a written run: in all, and by query."""
    written = TrecRun("cranfield")
    path.write_text("".join(written.text(result) for result in results))
    measures = [ir_measures.parse_measure(name) for name in ("nDCG@10", "R@100")]
    found = ir_measures.calc(measures, qrels, list(ir_measures.read_trec_run(str(path))))
    by_query = {(str(one.measure), one.query_id): one.value for one in found.per_query}
    return {str(measure): value for measure, value in found.aggregated.items()}, by_query


@pytest.mark.parametrize("empty", ["471", "995"])
def test_the_empty_documents_are_in_the_collection(cranfield, empty):
    """Cranfield has two documents without title and text, which the pipeline must handle."""
    corpus = (line.object() for line in read_lines(cranfield / "corpus.jsonl"))
    (document,) = [document for document in corpus if document["_id"] == empty]
    assert not (document["title"] + document["text"]).strip()


def test_figures_are_those_of_the_written_run(benchmark, part, monkeypatch, tmp_path, capsys, minilm):
    """Ingest, search and late interaction run end to end; each stage has the measures of its written run."""
    monkeypatch.setenv("CRANFIELD_URI", str(tmp_path / "cranfield.db"))
    results = []
    found = benchmark.measure(part, on_results=lambda _, some: results.extend(some))
    printed = capsys.readouterr().out
    qrels = read_qrels(part / "qrels.tsv")
    encode, search, rerank = found.systems[0].stages
    assert not encode.measures

    whole, by_query = calculated(results, qrels, tmp_path / "whole.run")
    assert rerank.measures == pytest.approx(whole, abs=1e-12)
    per_query = found.systems[0].per_query
    assert {(name, query): value for name, of in per_query.items() for query, value in of.items()} == by_query

    with Pipeline(Pipeline.from_yaml(BENCHMARKS / "cranfield.yaml").stages[:2]) as retrieval:
        alone = retrieval.run_batch(list(read_queries(part / "queries.jsonl")))
    assert search.measures == pytest.approx(calculated(alone, qrels, tmp_path / "search.run")[0], abs=1e-12)

    assert found.judged == QUERIES
    assert all(0.3 < stage.measures["nDCG@10"] <= stage.ceilings["nDCG@10"] <= 1 for stage in (search, rerank))
    assert found.system("cranfield").identity.keys() == {"encode", "milvus_search", "late_interaction"}
    assert f"{QUERIES} queries in" in printed
    assert all(f"{stage.measures['nDCG@10']:.4f}" in printed for stage in (search, rerank))
