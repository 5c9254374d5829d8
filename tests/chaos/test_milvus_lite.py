"""Milvus Lite under threads and tasks: its concurrent searches disturb each other, and one process owns the file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from milvus_pipeline import Pipeline
from milvus_stages import MilvusSearch
from support.known_collection import COLLECTION, LIMIT, VECTORS, make_known_collection, questions
from support.load import Question, count_codes, under_load
from support.process_leaks import leaving_nothing

THREADS, LISTS = 8, 16


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database whose index is searched in part."""
    uri = str(tmp_path_factory.mktemp("lite") / "things.db")
    make_known_collection(uri, VECTORS[:500], index_type="IVF_FLAT", nlist=LISTS)
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(uri)
    return uri


def search(uri: str, **fields: Any) -> Pipeline:
    return Pipeline([MilvusSearch(uri=uri, collection=COLLECTION, limit=LIMIT, **fields)])


def found_alone(uri: str) -> Sequence[Question]:
    """Return questions with different ``nprobe``, and what one thread finds."""
    asked = [replace(each.query, params={"nprobe": 1 + at}) for at, each in enumerate(questions(THREADS))]
    with search(uri) as pipeline:
        return [Question(query, [hit.id for hit in pipeline.run(query)]) for query in asked]


def test_two_thousand_searches_with_different_nprobe(database: str) -> None:
    """Eight threads and eight tasks get the same hits as one thread."""
    asked = found_alone(database)
    exact = [each.keys for each in questions(THREADS, vectors=VECTORS[:500])]
    assert [each.keys for each in asked] != exact  # so nprobe makes a difference
    with leaving_nothing(), under_load(search(database), asked) as ask:
        assert count_codes(ask(timeout=60, times=125), set()) == {"ok": 2000}


def test_a_pipeline_that_closes_leaves_the_other_its_database(database: str) -> None:
    """Of two pipelines that share a file, one closes while the other is searching."""
    asked = found_alone(database)
    with leaving_nothing(), under_load(search(database), asked) as ask:
        other = search(database).open()
        other.run(asked[0].query)
        assert count_codes(ask(timeout=60, times=20, meanwhile=other.close), set()) == {"ok": 320}


OTHER = """
import sys
from milvus_pipeline import Pipeline, StageError
from milvus_stages import MilvusSearch
try:
    Pipeline([MilvusSearch(uri=sys.argv[1], collection="things")]).open()
except StageError as error:
    print(error.reason_code, error)
"""


def test_another_process_learns_who_has_the_database(database: str) -> None:
    """The other process gets a message with the next step, and the queries of this process continue."""
    asked = found_alone(database)
    with under_load(search(database), asked) as ask:
        other = subprocess.Popen([sys.executable, "-c", OTHER, database], stdout=subprocess.PIPE, text=True)
        with other:
            assert count_codes(ask(timeout=60, times=20), set()) == {"ok": 320}
            output, _ = other.communicate(timeout=60)
    assert "holds this Milvus Lite database" in output
