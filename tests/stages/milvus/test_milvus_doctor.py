"""What the doctor finds about a search: planted defects on Milvus Lite, and one collection on a server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milvus_pipeline import DeadlineError, Pipeline, Query
from milvus_pipeline.plugin import CheckContext, Deadline, Finding
from milvus_stages import MilvusSearch
from milvus_stages.doctors.sample import SAMPLE
from milvus_stages.milvus.client.lite import LiteConnection
from milvus_stages.milvus.client.pool import connections
from support.collections import ALL, NONE, make_collection, make_index
from support.proxy import Proxy

ROWS, DIM, NLIST = 1500, 16, 32
WHOLE: Any = {"params": {"nprobe": NLIST}}


def make(
    uri: str,
    name: str,
    *,
    rows: int = ROWS,
    dim: int = DIM,
    kind: str = "IVF_FLAT",
    metric: str = "IP",
    texts: Sequence[str] = ("some text",),
    load: bool = False,
    vectors: Any = None,
) -> str:
    """Make a collection of random vectors with `id`, `vector`, `body` and `year`; return its name."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri, timeout=60, dedicated=True)
    if vectors is None:
        vectors = np.random.default_rng(5).normal(size=(max(rows, 1), dim)).astype(np.float32)
    keys = range(len(vectors))
    columns = {"id": keys, "vector": vectors, "body": [texts[key % len(texts)] for key in keys], "year": keys}
    make_collection(client, name, columns, parts=ALL if rows else NONE)
    make_index(client, name, kind, metric, nlist=NLIST)
    if not load:
        client.release_collection(name, timeout=60)
    client.close()
    return name


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[str]:
    """A Lite database of collections with and without defects, closed until a test opens it."""
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import MilvusClient

    uri = str(tmp_path_factory.mktemp("doctor") / "doctor.db")
    make(uri, "good")
    make(uri, "small", rows=30, dim=8, kind="HNSW", metric="L2", texts=("a text", "", "another one"))
    make(uri, "blank", rows=600, texts=("a text", "", " "))
    make(uri, "empty", rows=0)
    make(uri, "flat", rows=60, kind="FLAT")
    make(uri, "strange", rows=0, kind="NO_SUCH_INDEX")
    client = MilvusClient(uri, timeout=60, dedicated=True)
    client.insert("strange", [{"id": 1, "vector": [1.0] * DIM, "body": "a text", "year": 1}], timeout=60)
    client.flush("strange", timeout=60)
    client.close()
    make(uri, "graph", rows=300, kind="HNSW", metric="COSINE")
    server_manager_instance.release_server(uri)
    yield uri
    server_manager_instance.release_server(uri)


def stage(uri: str, collection: str, **fields: Any) -> MilvusSearch:
    """Return a search that fits the collection, unless fields say otherwise."""
    return MilvusSearch(**{"uri": uri, "collection": collection, "text_field": "body", **fields})


def findings(search: MilvusSearch, **context: Any) -> tuple[dict[str, Finding], CheckContext]:
    """Return the worst finding of each topic, and the context that the check leaves."""
    left = CheckContext(Deadline.after(60), **context)
    found: dict[str, Finding] = {}
    levels = ("ok", "warning", "error")
    for one in search.check(left):
        assert one.next_step or one.level == "ok", one
        before = found.get(one.topic)
        if before is None or levels.index(one.level) >= levels.index(before.level):
            found[one.topic] = one
    return found, left


def wrong(search: MilvusSearch, **context: Any) -> dict[str, str]:
    """Return level, message and next step of the findings that are not ok, by topic."""
    found, _ = findings(search, **context)
    return {
        topic: f"{one.level}: {one.message} -> {one.next_step}" for topic, one in found.items() if one.level != "ok"
    }


def tree(folder: str) -> dict[str, str]:
    """Return the files of a folder with the hash of their content."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_good_search_has_nothing_wrong_and_is_left_as_it_was(database):
    """A good search has only ok findings; texts are left for later stages, and no file or connection has changed."""
    before, entries = tree(database), set(connections._entries)
    found, context = findings(stage(database, "good", **WHOLE), dim=DIM, dim_of="encode (some model)")
    assert {one.level for one in found.values()} == {"ok"}
    assert set(found) == {
        *("database", "collection", "fields", "dimension", "index", "memory", "rows", "texts", "search", "recall")
    }
    assert found["database"].message.endswith("Milvus Lite 3.2.2")
    assert found["rows"].message == f"{ROWS:,}"
    assert "nlist 32, nprobe 32; for 1,500 rows 4·√rows = 155 lists are usual" in found["index"].message
    assert found["recall"].message.startswith("recall@10 is 1.00, against a search of every list, for 50 of the")
    assert "real queries are somewhat harder" in found["recall"].message
    assert (len(context.texts), context.documents) == (SAMPLE, ROWS)
    assert tree(database) == before
    assert set(connections._entries) == entries


def test_a_collection_loaded_for_a_check_is_released(database):
    """A check leaves the load state as it was: a loaded collection stays loaded, an unloaded one stays unloaded."""
    search = stage(database, "good", **WHOLE)
    with search:
        connection = search.opened.connection

        def state(name: str) -> str:
            return connection.client.get_load_state(name)["state"].name

        findings(search)
        assert state("good") == "Loaded"
        found, context = findings(stage(database, "flat"))  # the database has another user, so nothing is loaded
        assert state("flat") == "NotLoad"
        assert "each process loads it when it opens" in found["memory"].message
        assert context.documents == 60
        assert connections.users(connection) == 1


def test_a_stage_that_may_not_load(database):
    """With `load: false` a collection that is not in memory is an error, and is not loaded."""
    problems = wrong(stage(database, "good", load=False))
    assert problems == {
        "memory": "error: the collection is not loaded, and the stage may not load it (`load: false`) -> load it, or "
        "set `load: true`"
    }


def test_a_poor_recall_comes_with_advice(database):
    """A poor recall is reported with the recall that a larger nprobe gives, which is higher."""
    problems = wrong(stage(database, "good", params={"nprobe": 1}))
    assert set(problems) == {"recall"}
    message, _, step = problems["recall"].partition(" -> ")
    recall = float(message.split("is ")[1].split(",")[0])
    assert recall < 0.7
    assert step.startswith("raise params.nprobe from 1: 2 gives 0.")
    gains = [float(part.split()[2]) for part in step.partition(": ")[2].split(", ")]
    assert gains == sorted(gains)
    assert gains[0] > recall


@pytest.mark.parametrize(
    ("kind", "metric", "scale", "offset", "params"),
    [("IVF_FLAT", "IP", 1e-3, 0.0, {"nprobe": 1}), ("HNSW", "L2", 1e-2, 100.0, {"ef": 64})],
)
def test_the_recall_does_not_depend_on_the_length_of_the_vectors(tmp_path, kind, metric, scale, offset, params):
    """The recall is right for short vectors, whose scores are close to 0, and for long ones, close to each other.

    The true recall is computed here in double precision, with the vectors that the check samples.
    """
    uri, rows = str(tmp_path / "sizes.db"), 200
    vectors = (np.random.default_rng(5).normal(size=(rows, DIM)) * scale + offset).astype(np.float32)
    make(uri, "sized", rows=rows, kind=kind, metric=metric, vectors=vectors)
    search = stage(uri, "sized", index_type=kind, metric_type=metric, params=params)
    found, _ = findings(search)
    chosen = range(0, rows, rows // 50)
    exact = vectors.astype(np.float64)
    shares = []
    with Pipeline([search]) as pipeline:
        for result in pipeline.run_batch([Query("", vector=vectors[i].tolist()) for i in chosen]):
            query = exact[chosen[len(shares)]]
            scores = exact @ query if metric == "IP" else -((exact - query) ** 2).sum(axis=1)
            best = set(np.argsort(-scores)[:10].tolist())
            shares.append(len(best & {hit.id for hit in result}) / 10)
    assert abs(float(found["recall"].message.split()[2].strip(",")) - np.mean(shares)) <= 0.011
    assert found["recall"].level == ("warning" if metric == "IP" else "ok")


def test_the_recall_of_a_filtered_search(database):
    """Both sides of the comparison are filtered; a filter that needs values from the query is not used."""
    few = stage(database, "good", filter="year < {until}", filter_params={"until": 400}, **WHOLE)
    found, _ = findings(few)
    assert found["recall"].message.startswith("recall@10 is 1.00")
    found, _ = findings(stage(database, "good", filter="year < {until}", **WHOLE))
    assert "needs values from the query" in found["filter"].message
    assert found["recall"].level == "ok"


def test_the_recall_of_a_graph_is_measured_against_every_row(database):
    """An index without an exact search is compared with all vectors by brute force."""
    found, _ = findings(stage(database, "graph", index_type="HNSW", metric_type="COSINE", params={"ef": 64}))
    assert "against every row compared" in found["recall"].message
    assert found["recall"].level == "ok"
    found, _ = findings(stage(database, "flat", index_type="FLAT"))
    assert "a FLAT index compares the query with every vector" in found["recall"].message


def test_unknown_names_in_a_filter(database):
    """A name that is not a field is reported; keywords, strings and placeholders are not names."""
    fine = "year > {since} and not (body like \"yaer%\" or id in [1, 2]) AND body == 'month'"
    assert wrong(stage(database, "good", filter=fine, **WHOLE)) == {}
    assert "filter" not in wrong(stage(database, "good", filter="year > ISO '2025-01-01T00:00:00Z'", **WHOLE))
    problems = wrong(stage(database, "good", filter="yaer > 3", **WHOLE))
    assert problems["filter"] == "error: it uses 'yaer', which is not a field of the collection -> did you mean 'year'?"
    assert problems["search"].startswith("error: ")


def test_each_misfit_has_its_finding(database):
    """Metric, index type, fields and dimension each have their finding, with a next step."""
    search = stage(database, "good", metric_type="L2", index_type="HNSW", text_field="text", output_fields=["yaer"])
    problems = wrong(search, dim=8, dim_of="encode (other)")
    assert problems["metric_type"].startswith("error: the index was built with IP, not L2 -> set `metric_type: IP`")
    assert problems["index_type"].startswith("error: the field 'vector' has the index IVF_FLAT, not HNSW -> set")
    assert "has no field 'text'" in problems["text_field"]
    assert problems["output_fields"].endswith("-> did you mean 'year'?")
    assert problems["dimension"].startswith("error: 'vector' holds vectors of 16, but encode (other) gives 8 -> encode")
    assert "recall" not in problems


def test_empty_texts_and_too_few_rows(database):
    """Empty texts are counted in a sample, and left out of the sample for later stages; a large limit is reported."""
    search = stage(database, "small", index_type="HNSW", metric_type="L2", limit=50)
    problems = wrong(search)
    assert problems["texts"].startswith("warning: 10 of 30 sampled documents (33 %, about 10 in all) have")
    assert problems["rows"].startswith("warning: 30, fewer than offset + limit (0 + 50) request -> lower limit")
    _, context = findings(search)
    assert sorted(set(context.texts)) == ["a text", "another one"]
    problems = wrong(stage(database, "blank", **WHOLE))  # blanks, which a filter does not find
    assert "of 200 sampled documents" in problems["texts"]
    assert 100 < int(problems["texts"].split()[1]) < 160
    problems = wrong(stage(database, "small", index_type="HNSW", metric_type="L2", limit=5, offset=30))
    assert problems["rows"].startswith("error: 30, all of which `offset` 30 skips")


def test_an_empty_collection_is_an_error(database):
    """An empty collection, in which every query finds nothing, is an error."""
    assert wrong(stage(database, "empty"))["rows"].startswith("error: the collection is empty")


def test_an_index_that_milvus_lite_does_not_know(database):
    """An unknown index type, which Milvus Lite accepts, is reported because the collection cannot be loaded."""
    problems = wrong(stage(database, "strange", index_type="NO_SUCH_INDEX"))
    assert problems["memory"].startswith("error: ")
    assert "NO_SUCH_INDEX" in problems["memory"]


def test_a_missing_collection(database):
    """A missing collection is reported with a similar name."""
    problems = wrong(stage(database, "god"))
    assert problems == {
        "collection": "error: there is no collection 'god' -> did you mean 'good'?; make it with "
        "`milvus-pipeline ingest`, or correct the name"
    }


def test_a_missing_database_is_not_made(tmp_path):
    """A missing database, which Milvus Lite would create, is reported and not created."""
    problems = wrong(stage(str(tmp_path / "none.db"), "good"))
    assert problems["database"].endswith("-> check `uri`, or make it with `milvus-pipeline ingest`")
    assert list(tmp_path.iterdir()) == []


def test_a_check_of_a_file_that_ran_out_of_time(database, monkeypatch):
    """A timeout with Milvus Lite, which is work of this process, is a warning and no fault of the search."""

    def late(connection: LiteConnection, arguments: Any, deadline: Deadline) -> Any:
        raise DeadlineError("timed out after 0.5 s; increase `timeout` or request fewer results")

    monkeypatch.setattr(LiteConnection, "search", late)
    problems = wrong(stage(database, "good", **WHOLE))
    assert set(problems) == {"database"}
    assert problems["database"].startswith("warning: timed out before everything was checked -> give the check")


def test_a_server_that_is_not_there():
    """A server that is not there is reported after one attempt, with the next step."""
    problems = wrong(stage("http://127.0.0.1:1", "good"))
    assert problems["server"].startswith("error: http://127.0.0.1:1: the server cannot be reached")
    assert problems["server"].endswith("-> check that the server runs and that `uri` is right")


def test_a_frozen_server(database):
    """A server that accepts connections and never answers is reported when the check times out."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        search = stage(f"http://127.0.0.1:{listener.getsockname()[1]}", "good")
        (found,) = search.check(CheckContext(Deadline.after(0.5)))
    assert (found.level, found.topic) == ("error", "server")
    assert "did not answer in time" in found.message


@pytest.mark.server
def test_a_check_of_a_server_changes_no_load_state(milvus_server):
    """A server's version, index, rows and recall are reported; a collection that is not loaded is not loaded."""
    from pymilvus import MilvusClient

    entries = set(connections._entries)
    name = make(milvus_server, "doctor", rows=1500, texts=("a text", ""))
    client = MilvusClient(milvus_server, timeout=60, dedicated=True)
    search = stage(milvus_server, name, params={"nprobe": 1})
    problems = wrong(search)
    assert set(problems) == {"memory"}
    assert problems["memory"].startswith("warning: the collection is not loaded: opening the stage loads it")
    assert set(wrong(stage(milvus_server, name, load=False))) == {"memory"}
    assert client.get_load_state(name)["state"].name == "NotLoad"
    client.load_collection(name, timeout=120)
    found, context = findings(search)
    assert "Milvus v2.3" in found["server"].message
    assert "none is required" in found["token"].message
    assert found["index"].message == "IVF_FLAT, IP, nlist 32, nprobe 1; for 1,500 rows 4·√rows = 155 lists are usual"
    assert found["texts"].message.startswith("100 of 200 sampled documents (50 %, about 750 in all) have no text")
    assert found["recall"].level == "warning"
    assert found["recall"].next_step.startswith("raise params.nprobe from 1: 2 gives 0.")
    assert context.documents == 1500
    with Proxy(int(milvus_server.rpartition(":")[2])) as far:
        far.delay(0.1)
        waited = CheckContext(Deadline.after(3.0))
        (last,) = [one for one in stage(far.url, name).check(waited) if one.level != "ok"]
    assert (last.level, last.message) == ("warning", "timed out before everything was checked")
    assert client.get_load_state(name)["state"].name == "Loaded"
    assert set(connections._entries) == entries
    client.drop_collection(name, timeout=60)
    client.close()
