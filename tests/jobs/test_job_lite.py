"""A job over a Milvus Lite collection: it is in the manifest, and a change of it is noticed."""

import pytest

from milvus_pipeline import Pipeline, ResumeError, manifest_path, read_manifest, run_job
from milvus_stages import MilvusSearch
from support.known_collection import COLLECTION, VECTORS, make_known_collection, questions


def interrupt(done):
    """Press Ctrl-C when eight queries are done."""
    if done.queries == 8:
        raise KeyboardInterrupt


def test_a_collection_that_has_grown(tmp_path):
    """The row count is in the manifest; a resumption over more rows is refused unless accepted."""
    uri, out = str(tmp_path / "things.db"), tmp_path / "out.jsonl"
    queries = [question.query for question in questions(12)]

    def pipeline():
        return Pipeline([MilvusSearch(uri=uri, collection=COLLECTION, text_field="text", index_type="FLAT")])

    make_known_collection(uri, VECTORS[:200])
    with pipeline() as opened, pytest.raises(KeyboardInterrupt):
        run_job(opened, queries, out, batch_size=4, on_progress=interrupt)
    manifest = read_manifest(manifest_path(out))
    assert manifest.identity["milvus_search"]["collection"]["rows"] == 200
    assert manifest.progress.queries == 8
    before = out.read_bytes()
    make_known_collection(uri, VECTORS[:300])
    with pipeline() as opened:
        with pytest.raises(ResumeError) as caught:
            run_job(opened, queries, out, batch_size=4, resume=True)
        assert "milvus_search.collection.rows: was 200, is 300" in caught.value.differences
        assert out.read_bytes() == before
        report = run_job(opened, queries, out, batch_size=4, resume=True, accept_changes=True)
    assert (report.queries, report.before) == (12, 8)
    assert out.read_bytes().startswith(before)
    assert read_manifest(manifest_path(out)).identity["milvus_search"]["collection"]["rows"] == 300
