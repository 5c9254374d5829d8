"""The tables of docs/reliability.md match the tests and the reason codes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from milvus_pipeline.errors import REASON_CODES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_that_it_names_is_there() -> None:
    """Each row of the tables of faults names an existing test by its file and function."""
    table = TEXT.split("## Faults")[1].splitlines()
    lines = [line for line in table if line.startswith("| ") and "shown by" not in line]
    assert len(lines) > 50
    for line in lines:
        ((path, name),) = re.findall(r"`(tests/\S+\.py)::(\w+)`", line)
        nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}, line


def test_its_codes_are_those_that_there_are() -> None:
    """The table explains all reason codes and no others."""
    explained = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(explained) == sorted(REASON_CODES)
