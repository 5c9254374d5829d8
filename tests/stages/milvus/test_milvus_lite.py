"""What is special about Milvus Lite: a file, one process, and searches that disturb each other."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from milvus_pipeline import DeadlineError, Pipeline, Query, StageError
from milvus_stages import MilvusSearch

from .conftest import DIM, NLIST, Engine

HOLD = """
import sys
from pymilvus import MilvusClient
client = MilvusClient(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_searches_with_different_nprobe_do_not_disturb_each_other(lite: Engine) -> None:
    """Eight threads, each with its own nprobe and pipeline, get the same answers as one thread."""
    pipelines = [Pipeline([lite.stage(params={"nprobe": nprobe})]).open() for nprobe in range(1, NLIST + 1)]
    queries = [lite.query(seed) for seed in range(40)]
    alone = [[pipeline.run(query).hits for query in queries] for pipeline in pipelines]
    with ThreadPoolExecutor(len(pipelines)) as threads:
        together = list(threads.map(lambda pipeline: [pipeline.run(query).hits for query in queries], pipelines))
    assert together == alone
    for pipeline in pipelines:
        pipeline.close()


def test_a_database_that_another_process_holds(own: Engine) -> None:
    """The message names the process that holds the database, if the system lists locks; once it ends, it opens."""
    with subprocess.Popen([sys.executable, "-c", HOLD, own.uri], stdin=-1, stdout=-1, stderr=-3, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        number = rf"\(number {holder.pid}, .*\) " if Path("/proc/locks").exists() else ""
        with pytest.raises(StageError, match=rf"another process {number}holds this Milvus Lite database"):
            Pipeline([own.stage()]).open()
        holder.communicate("")
    with Pipeline([own.stage()]) as pipeline:
        assert len(pipeline.run(own.query(0))) == 10


FORK = """
import os, signal, sys
import numpy as np
from milvus_pipeline import Pipeline, Query, StageError
from milvus_stages import MilvusSearch

query = Query("q", vector=np.ones(16, dtype=np.float32))
with Pipeline([MilvusSearch(uri=sys.argv[1], collection="things")]) as pipeline:
    right = pipeline.run(query).hits
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            pipeline.run(query)
        except StageError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(pipeline.run(query).hits == right)
"""


def test_a_pipeline_that_was_opened_before_a_fork(own: Engine) -> None:
    """The child, without the threads that a search needs, fails at once; the parent continues."""
    command = [sys.executable, "-c", FORK, own.uri]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.splitlines()
    assert "make a pipeline in each process, after the fork" in lines[0]
    assert lines[1:] == ["True"]


def test_closing_releases_the_database(own: Engine) -> None:
    """Once the last pipeline is closed, another process can open the database."""
    first, second = Pipeline([own.stage()]).open(), Pipeline([own.stage()]).open()
    first.close()
    second.close()
    with subprocess.Popen([sys.executable, "-c", HOLD, own.uri], stdin=-1, stdout=-1, stderr=-3, text=True) as other:
        output, _ = other.communicate("")
    assert output.strip() == "held"


def test_closing_leaves_other_clients_connected(own: Engine) -> None:
    """A pymilvus client that the caller opened on the same database still works after the pipeline is closed."""
    from pymilvus import MilvusClient

    client = MilvusClient(own.uri, timeout=10)
    with Pipeline([own.stage()]) as pipeline:
        pipeline.run(own.query(0))
    assert client.list_collections(timeout=10) == ["things"]
    client.close()


def test_a_link_is_the_database_it_leads_to(own: Engine, tmp_path: Path) -> None:
    """Two names of one database share a connection."""
    (tmp_path / "link.db").symlink_to(own.uri)
    link = MilvusSearch(uri=str(tmp_path / "link.db"), collection="things")
    with Pipeline([own.stage()]) as pipeline, Pipeline([link]) as linked:
        assert pipeline.run(own.query(0)).hits == linked.run(own.query(0)).hits


def test_an_idle_connection_is_not_pinged(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option of the channel stops pings without calls, for which gRPC prints `GOAWAY ... too_many_pings`."""
    made: list[dict[str, Any]] = []
    channel = grpc.insecure_channel

    def seen(target: str, options: Any = None, **others: Any) -> grpc.Channel:
        made.append(dict(options or ()))
        return channel(target, options=options, **others)

    monkeypatch.setattr(grpc, "insecure_channel", seen)
    Pipeline([own.stage()]).open().close()
    assert [options["grpc.keepalive_time_ms"] for options in made] == [2**31 - 1]


URI_VARIABLE = """
import os, sys
from milvus_pipeline import Pipeline
pipeline = Pipeline.from_yaml("stages:\\n  - {type: milvus_search, uri: '${MILVUS_URI}', collection: things}\\n")
before = dict(os.environ)
pipeline.open().close()
assert os.environ == before
print(pipeline.stages[0].uri)
"""


def test_a_database_named_by_the_variable_that_pymilvus_reads_too(own: Engine) -> None:
    """MILVUS_URI may be a path in our configurations, though pymilvus refuses one."""
    environment = {**os.environ, "MILVUS_URI": own.uri}
    done = subprocess.run([sys.executable, "-c", URI_VARIABLE], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == own.uri, done.stderr


@pytest.mark.parametrize("name", ["missing.db", "no/folder.db", "empty.db"])
def test_searching_makes_no_database(tmp_path: Path, name: str) -> None:
    """Searching a missing database is an error, and creates nothing; nor is another folder made into one."""
    (tmp_path / "empty.db").mkdir()
    with pytest.raises(StageError, match=r"there is no Milvus Lite database .* make it with `milvus-pipeline ingest`"):
        MilvusSearch(uri=tmp_path / name, collection="things").open()
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty.db"]


def test_a_plain_file_is_not_a_database(tmp_path: Path) -> None:
    """A plain file, such as a database of an older Milvus Lite, is reported as one."""
    (tmp_path / "old.db").write_bytes(b"SQLite format 3")
    with pytest.raises(StageError, match="is a file, but a Milvus Lite database is a folder"):
        MilvusSearch(uri=tmp_path / "old.db", collection="things").open()


def test_the_deadline_holds_while_others_search(lite: Engine) -> None:
    """A query whose turn does not come in time fails, and later ones are answered correctly."""
    with Pipeline([lite.stage()]) as pipeline:
        stage = pipeline.stages[0]
        many = Query("x", vector=np.ones(DIM))
        with ThreadPoolExecutor(1) as thread:
            busy = thread.submit(pipeline.run_batch, [many] * 1500)
            while not stage.opened.connection._worker._work_queue.empty() or not busy.running():
                pass
            late = pipeline.run_batch([lite.query(0)] * 200, timeout=0.001, return_errors=True)
            assert len(busy.result()) == 1500
        assert all(isinstance(result.error, DeadlineError) for result in late)
        assert [hit.id for hit in pipeline.run(lite.query(0)).hits] == [
            key for key, _ in lite.exact(lite.query(0))[:10]
        ]
