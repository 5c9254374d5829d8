"""Ingest: records become rows that are checked before they are written, and a failed run leaves nothing behind."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from milvus_pipeline import IngestError, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.ingest.ingest import ingest
from milvus_pipeline.plugin import Context, Stage
from milvus_stages import MilvusSearch

DIM = 8
FIELDS: list[dict[str, Any]] = [
    {"name": "id", "dtype": "VARCHAR", "is_primary": True, "max_length": 16, "source": "_id"},
    {"name": "text", "dtype": "VARCHAR", "max_length": 40, "source": ["title", "text"]},
    {"name": "year", "dtype": "INT16"},
    {"name": "vector", "dtype": "FLOAT_VECTOR"},
]


class HashEncoder(Stage):
    """Makes vectors that depend only on the text."""

    type: ClassVar[str] = "hash_encoder"
    gives: ClassVar[frozenset[str]] = frozenset({"vector"})

    fail_on: str = "\0"
    dim: int = DIM

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if not self.is_open:
            raise StageError("the encoder is not open")
        if self.fail_on in texts:
            raise RuntimeError("out of memory")
        made = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=self.dim) for text in texts]
        return np.array([vector / np.linalg.norm(vector) for vector in made], dtype=np.float32)

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        return [
            r if r.query.vector is not None else r.with_query(r.query.with_vector(self.embed([r.query.text])[0]))
            for r in results
        ]


def record(number: int, **changed: Any) -> dict[str, Any]:
    return {"_id": f"d{number}", "title": "T", "text": f"text {number}", "year": 1900 + number, **changed}


def pipeline_on(uri: str, *, encoder: Stage | None = None, collection: dict | None = None, **fields: Any) -> Pipeline:
    section = {"fields": FIELDS, "index": {"params": {"nlist": 4}}, "batch_size": 16, **(collection or {})}
    search = MilvusSearch(uri=uri, collection=fields.pop("name", "papers"), limit=3, **fields)
    return Pipeline([encoder or HashEncoder(), search], collection=section)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A Milvus Lite database in a folder that does not exist yet."""
    return str(tmp_path / "data" / "papers.db")


def collections(uri: str) -> list[str]:
    """Return the names of the server's collections."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri, timeout=10, dedicated=True)
    try:
        return sorted(client.list_collections(timeout=10))
    finally:
        client.close()


def check_ingest_and_search(uri: str) -> None:
    pipeline, seen = pipeline_on(uri), []
    report = ingest(pipeline, (record(n) for n in range(100)), on_progress=seen.append)
    assert (report.collection, report.rows, report.warnings) == ("papers", 100, ())
    assert seen == [16, 32, 48, 64, 80, 96, 100]
    with pipeline:
        assert pipeline.stages[1]._opened.state.index.nlist == 4
        [hit, *_] = pipeline.run(Query("T text 42", params={"nprobe": 4})).hits
    assert (hit.id, hit.text, hit.fields) == ("d42", "T text 42", {"year": 1942})
    assert hit.score == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(IngestError, match="exists already; pass --overwrite"):
        ingest(pipeline, [record(0)])
    assert ingest(pipeline, [record(n) for n in range(5)], overwrite=True).rows == 5
    with pipeline:
        assert {hit.id for hit in pipeline.run("T text 42").hits} <= {f"d{n}" for n in range(5)}


def test_ingest_and_search(uri: str) -> None:
    """Ingested rows are found; an existing collection is replaced only on request; folders are created."""
    check_ingest_and_search(uri)
    assert collections(uri) == ["papers"]


@pytest.mark.server
def test_ingest_and_search_on_a_server(milvus_server: str) -> None:
    """A server behaves as Milvus Lite does."""
    check_ingest_and_search(milvus_server)
    assert not [name for name in collections(milvus_server) if name.startswith("papers__")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(3, year="1903"), "record 4: 'year': must be a whole number, got a string"),
        (record(3, year=40000), "record 4: 'year': must be below 32768, got 40000"),
        (record(3, year=True), "record 4: 'year': must be a whole number"),
        (record(3, year=None), "record 4: 'year': is missing, but the field 'year' needs it; the record has _id, text"),
        (record(3, text="ü" * 20), "record 4: 'title' + 'text': has 42 bytes of UTF-8, but its field holds 40"),
        (
            record(3, text=["secret"]),
            "record 4: 'text': must be a string or a finite number to be joined with others, got a list",
        ),
        (
            record(3, title={"secret": 1}),
            "record 4: 'title': must be a string or a finite number to be joined",
        ),
        (
            record(3, title=True),
            "record 4: 'title': must be a string or a finite number to be joined",
        ),
        (record(3, title=float("nan")), "record 4: 'title': must be a string or a finite number to be joined"),
        (record(3, _id=7), "record 4: '_id': must be a string, got 7"),
        (record(2), "record 4: has the same 'id' ('d2') as record 3"),
        (record(3, vector=[1.0] * 7), "record 4: 'vector': must have 8 numbers, got 7"),
        (record(3, vector=[float("nan")] * DIM), "record 4: 'vector': holds NaN or infinity"),
        (record(3, vector="secret"), "record 4: 'vector': must be a flat list of numbers"),
        (["_id"], "record 4: must be a mapping of keys to values, got a list"),
        (record(3, text="\ud800"), "record 4: 'title' + 'text': must be valid Unicode text"),
    ],
)
def test_a_bad_record_stops_it(uri: str, bad: Any, message: str) -> None:
    """The message names the record and the key but not the text; no collection is left behind."""
    with pytest.raises(IngestError) as caught:
        ingest(pipeline_on(uri), [record(0), record(1), record(2), bad])
    assert message in str(caught.value)
    assert caught.value.record == 4
    assert "text 3" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert collections(uri) == []


def test_a_run_that_fails_half_way_leaves_the_old_collection(uri: str) -> None:
    """With overwrite the old rows stay until all new ones are written."""
    pipeline = pipeline_on(uri)
    ingest(pipeline, [record(n) for n in range(20)])
    with pytest.raises(IngestError, match="record 41: 'year': is missing"):
        ingest(pipeline, [*(record(n) for n in range(30, 70)), record(70, year=None)], overwrite=True)
    failing = pipeline_on(uri, encoder=HashEncoder(fail_on="T text 90"))
    with pytest.raises(IngestError, match="the encoder failed on 1 texts: RuntimeError: out of memory"):
        ingest(failing, [*(record(n) for n in range(32)), record(90)], overwrite=True)
    assert collections(uri) == ["papers"]
    with pipeline:
        assert pipeline.run("T text 11").hits[0].id == "d11"


def test_what_a_killed_run_left_behind_is_no_obstacle(uri: str) -> None:
    """The unfinished collection of an earlier run is dropped."""
    writer = pipeline_on(uri).stages[1].writer(pipeline_on(uri).collection)
    writer.open()
    writer.create(DIM)
    writer.close()
    assert collections(uri) == ["papers__ingest"]
    assert ingest(pipeline_on(uri), [record(0)]).rows == 1
    assert collections(uri) == ["papers"]


def test_blank_texts_are_kept_and_counted(uri: str) -> None:
    """Empty documents are kept, with a warning that counts them."""
    pipeline = pipeline_on(uri)
    report = ingest(pipeline, [record(0), record(1, title="", text=""), record(2, title=" ", text=" ")])
    assert report.rows == 3
    assert report.warnings == ("2 records with a blank 'text'; kept, though a search can hardly find it",)
    with pipeline:
        assert {hit.id for hit in pipeline.run(Query("x", params={"nprobe": 4})).hits} == {"d0", "d1", "d2"}


def test_numbers_are_joined_as_text(uri: str) -> None:
    """A number among several sources becomes text; a missing or blank one leaves no extra blanks."""
    pipeline = pipeline_on(uri)
    ingest(pipeline, [record(0, title=1984), record(1, title=" "), record(2, title=None), record(3, title=2.5)])
    with pipeline:
        hits = pipeline.run_batch([Query("x", params={"nprobe": 4}), Query("1984 text 0", params={"nprobe": 4})])
    texts = {hit.text for result in hits for hit in result.hits}
    assert texts == {"1984 text 0", "text 1", "text 2", "2.5 text 3"}


def test_vectors_of_the_records_are_taken(uri: str) -> None:
    """Records with vectors need no encoder; it is used for the others only."""
    own = [1.0] + [0.0] * (DIM - 1)
    pipeline = pipeline_on(uri)
    ingest(pipeline, [record(0, vector=own), record(1)])
    with pipeline:
        first, second = pipeline.run(Query("q", vector=own, params={"nprobe": 4})).hits
        assert first.score == pytest.approx(1.0)
        assert second.id == "d1"
    alone = Pipeline([pipeline.stages[1]], collection=pipeline.collection)
    assert ingest(alone, [record(0, vector=own)], overwrite=True).rows == 1
    with pytest.raises(IngestError, match="no stage before the search can make vectors; put an encode stage first"):
        ingest(alone, [record(0)], overwrite=True)


def test_keys_that_milvus_makes(uri: str) -> None:
    """With an auto_id key equal records become two rows."""
    fields = [{"name": "id", "dtype": "INT64", "is_primary": True, "auto_id": True}, *FIELDS[1:]]
    assert ingest(pipeline_on(uri, collection={"fields": fields}), [record(0), record(0)]).rows == 2


def test_dynamic_fields_and_json(uri: str) -> None:
    """With enable_dynamic_field keys outside the schema are kept, and JSON fields hold any JSON."""
    section = {"fields": [*FIELDS, {"name": "meta", "dtype": "JSON"}], "enable_dynamic_field": True}
    pipeline = pipeline_on(uri, collection=section, output_fields=["meta", "shelf"])
    ingest(pipeline, [record(0, meta={"a": [1, None]}, shelf="B7")])
    with pipeline:
        [hit] = pipeline.run("x").hits
    assert hit.fields == {"meta": {"a": [1, None]}, "shelf": "B7"}


@pytest.mark.parametrize(
    ("fields", "section", "message"),
    [
        ({"metric_type": "L2"}, {}, "index.metric_type is IP, but milvus_search has L2"),
        ({"index_type": "HNSW"}, {}, "index.index_type is IVF_FLAT, but milvus_search has HNSW"),
        ({"anns_field": "v"}, {}, "the vector field is 'vector', but milvus_search searches 'v'"),
        ({"text_field": "body"}, {}, "text_field is 'body', which is not one of the fields (id, text, vector, year)"),
        ({"output_fields": ["x"]}, {}, "output_fields is 'x', which is not one of the fields"),
        ({}, {"fields": [*FIELDS[:3], {**FIELDS[3], "dim": 9}]}, "must have 9 numbers, got 8"),
    ],
)
def test_search_and_collection_must_agree(uri: str, fields: dict, section: dict, message: str) -> None:
    """A disagreement that would make the search fail later is reported before anything is written."""
    with pytest.raises(IngestError) as caught:
        ingest(pipeline_on(uri, collection=section, **fields), [record(0)])
    assert message in str(caught.value)


def test_pipelines_that_cannot_ingest(uri: str) -> None:
    """A missing section, no or two stages to write for, and no records are each reported."""
    good = pipeline_on(uri)
    encoder, search = good.stages
    with pytest.raises(IngestError, match="has no `collection:` section"):
        ingest(Pipeline([encoder, search]), [record(0)])
    with pytest.raises(
        IngestError, match="must have one stage whose collection can be made, such as milvus_search, got none"
    ):
        ingest(Pipeline([encoder], collection=good.collection), [record(0)])
    two = Pipeline([encoder, search, search.model_copy(update={"name": "other"})], collection=good.collection)
    with pytest.raises(IngestError, match=r"must have one stage .*, got milvus_search, other"):
        ingest(two, [record(0)])
    with pytest.raises(IngestError, match="there are no records; nothing was made"):
        ingest(good, [])
    assert collections(uri) == []


def test_nothing_stays_open(uri: str) -> None:
    """The encoder is closed and the database released at the end, also after a failure."""
    from milvus_stages.milvus.client.pool import connections

    pipeline = pipeline_on(uri)
    ingest(pipeline, [record(0)])
    with pytest.raises(IngestError):
        ingest(pipeline, [{}], overwrite=True)
    assert not any(stage.is_open for stage in pipeline.stages)
    assert not any(uri in key for key in connections._entries)
