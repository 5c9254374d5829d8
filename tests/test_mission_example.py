"""The example that the project starts from, end to end, on Milvus Lite and on a server."""

import asyncio

import numpy as np
import pytest

from milvus_pipeline import Pipeline, ingest
from milvus_stages import Encode, LateInteraction, MilvusSearch, Truncate

NAME = "mission_example"
COLLECTION = {
    "fields": [
        {"name": "doc_id", "dtype": "INT64", "is_primary": True},
        {"name": "doc_vector", "dtype": "FLOAT_VECTOR", "dim": 384},
        {"name": "doc_text", "dtype": "VARCHAR", "max_length": 65535},
    ],
    "index": {"index_type": "IVF_FLAT", "metric_type": "IP", "params": {"nlist": 128}},
}
YAML = """
name: dartmouth
stages:
  - {type: encode, model: %(model)s}
  - {type: milvus_search, uri: "%(uri)s", collection: %(name)s, anns_field: doc_vector, text_field: doc_text, limit: 3}
  - {type: late_interaction, model: %(model)s}
  - {type: truncate, top_k: 3}
collection:
  fields:
    - {name: doc_id, dtype: INT64, is_primary: true}
    - {name: doc_vector, dtype: FLOAT_VECTOR, dim: 384}
    - {name: doc_text, dtype: VARCHAR, max_length: 65535}
  index: {index_type: IVF_FLAT, metric_type: IP, params: {nlist: 128}}
"""


@pytest.fixture(scope="module", params=["lite", pytest.param("server", marks=pytest.mark.server)])
def uri(request, tmp_path_factory):
    """The address of the example's collection."""
    if request.param == "server":
        return request.getfixturevalue("milvus_server")
    return str(tmp_path_factory.mktemp("example") / "example.db")


@pytest.fixture(scope="module")
def pipeline(uri, minilm, mission_example):
    """The open pipeline of the example, with its collection filled."""
    made = Pipeline(
        [
            Encode(model=minilm),
            MilvusSearch(uri=uri, collection=NAME, anns_field="doc_vector", text_field="doc_text", limit=3),
            LateInteraction(model=minilm),
            Truncate(top_k=3),
        ],
        name="dartmouth",
        collection=COLLECTION,
    )
    assert ingest(made, mission_example["documents"], overwrite=True).rows == 4
    with made:
        yield made


def test_the_search_finds_the_documents_with_the_known_distances(pipeline, mission_example):
    """The search finds documents 1, 0 and 3 with their texts and the example's distances within 1e-4."""
    result = pipeline.run(mission_example["query"])
    found = sorted(result.hits, key=lambda hit: hit.ranks["milvus_search"])
    known = mission_example["search_limit_3"]
    assert [hit.id for hit in found] == [one["doc_id"] for one in known] == [1, 0, 3]
    distances = [hit.scores["milvus_search"] for hit in found]
    np.testing.assert_allclose(distances, [one["distance"] for one in known], atol=1e-4)
    texts = {one["doc_id"]: one["doc_text"] for one in mission_example["documents"]}
    assert all(hit.text == texts[hit.id] for hit in result)


def test_the_querys_vector_is_the_examples(pipeline, mission_example):
    """The encoder returns the vector that the example prints."""
    vector = pipeline.run(mission_example["query"]).query.vector
    assert len(vector) == 384
    starts, ends = (mission_example["embedding"][f"query_vector_{part}"] for part in ("starts", "ends"))
    np.testing.assert_allclose([*vector[:2], vector[-1]], [*starts, ends], atol=1e-6)


def test_the_reranker_puts_the_answer_first(pipeline, mission_example):
    """The Dartmouth Conference comes first, and every hit has the scores of both stages."""
    result = pipeline.run(mission_example["query"])
    assert result.status == "ok"
    assert result.hits[0].id == 1
    assert all(list(hit.scores) == ["milvus_search", "late_interaction"] for hit in result)
    assert [report.stage for report in result.reports] == ["encode", "milvus_search", "late_interaction", "truncate"]
    assert [(report.hits_in, report.hits_out) for report in result.reports] == [(0, 0), (0, 3), (3, 3), (3, 3)]


def test_yaml_and_python_are_equal(pipeline, uri, minilm, mission_example):
    """The same pipeline from YAML is an equal object and returns an equal result."""
    read = Pipeline.from_yaml(YAML % {"model": minilm, "uri": uri, "name": NAME})
    assert read == pipeline
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
    with read:
        assert read.run(mission_example["query"]) == pipeline.run(mission_example["query"])


def test_sync_async_and_batch_are_equal(pipeline, mission_example):
    """A query has the same hits and scores alone, awaited, gathered and in a batch."""
    query, other = mission_example["query"], "Who wrote the first program that plays chess?"
    alone = pipeline.run(query)
    batch = pipeline.run_batch([query, other])

    async def run():
        gathered = await asyncio.gather(*(pipeline.arun(query) for _ in range(8)))
        return gathered, await pipeline.arun_batch([query, other])

    gathered, awaited = asyncio.run(run())
    assert all(result == alone for result in gathered)
    assert awaited == batch
    assert [hit.id for hit in batch[0]] == [hit.id for hit in alone]
    for one, same in zip(batch[0], alone, strict=True):
        assert one.scores == pytest.approx(same.scores, abs=1e-5)
