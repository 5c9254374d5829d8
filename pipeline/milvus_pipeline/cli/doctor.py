"""``milvus-pipeline doctor``: what can be verified of a pipeline before its first query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.exit_codes import FAILED, Debug, reported
from milvus_pipeline.cli.tables import console_on, shown
from milvus_pipeline.cli.writers import opened
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.findings import Finding, Level
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.run.doctor import CHECK_SECONDS

_STYLES: Final[dict[Level, str]] = {"ok": "green", "warning": "yellow", "error": "bold red"}
_INGEST: Final = "`milvus-pipeline ingest`"
_DEMO: Final = "python_docs.yaml"  # whose collection has a command of its own


class Form(StrEnum):
    """How findings are written."""

    TABLE = "table"
    JSON = "json"


@reported
def doctor(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline, a YAML file.")],
    send: Annotated[
        bool,
        typer.Option(
            "--send", help="Send each hosted reranker one request of one short text, which may cost something."
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that the servers of a stage have to answer.")
    ] = CHECK_SECONDS,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 for warnings, too.")] = False,
    form: Annotated[Form, typer.Option("--format", help="A table, or one JSON document.")] = Form.TABLE,
    debug: Debug = False,
) -> int:
    """Check a pipeline before its first query: servers, collection, index and its recall, models, keys, limits.

    Nothing is loaded, changed or paid for. Each stage is looked at, and its fallbacks; what is wrong is told with the
    next step. Ends with 1 if there is an error.
    """
    pipeline = Pipeline.from_yaml(config)
    findings = [_with_command(found, config) for found in pipeline.check(timeout=timeout, send=send)]
    counts = Counter(found.level for found in findings)
    if form is Form.JSON:
        with opened(None, overwrite=False) as stream:
            stream.write(json_text(_document(pipeline.name, config, findings, counts), indent=2) + "\n")
    else:
        _print(pipeline.name, findings, counts)
    return FAILED if counts["error"] or (strict and counts["warning"]) else 0


def _with_command(found: Finding, config: Path) -> Finding:
    """The finding, with the whole of the command that it advises."""
    command = "`make demo`" if config.name == _DEMO else f"`milvus-pipeline ingest {config} FILE...`"
    return Finding(found.level, found.topic, found.message, found.next_step.replace(_INGEST, command), found.stage)


def _document(name: str, config: Path, findings: Sequence[Finding], counts: Counter[Level]) -> dict[str, Any]:
    return {
        "pipeline": name,
        "config": str(config),
        "summary": {level: counts[level] for level in _STYLES},
        "findings": [found.to_dict() for found in findings],
    }


def _print(name: str, findings: Sequence[Finding], counts: Counter[Level]) -> None:
    with opened(None, overwrite=False) as stream:
        console = console_on(stream)
        console.print(_table(findings))
        console.print()
        console.print(Text(f"{shown(name)}: {_summary(counts)}", style="bold"))


def _table(findings: Sequence[Finding]) -> Table:
    """A row a finding, below the name of its stage: so the texts have most of the width."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("stage, check", overflow="fold", max_width=24)
    table.add_column("result", no_wrap=True)
    table.add_column("found, and → what to do", ratio=1, overflow="fold")
    before = None
    for found in findings:
        if found.stage != before:
            table.add_row(Text(shown(found.stage), style="bold"), Text(""), Text(""))
        before = found.stage
        text = Text(shown(found.message))
        if found.next_step:
            text.append(f"\n→ {shown(found.next_step)}", style="bold")
        table.add_row(Text(f"  {shown(found.topic)}"), Text(found.level, style=_STYLES[found.level]), text)
    return table


def _summary(counts: Counter[Level]) -> str:
    """``2 errors, 1 warning, 14 ok``."""
    levels: tuple[Level, ...] = ("error", "warning")
    parts = [f"{counts[level]} {level}{'s' * (counts[level] > 1)}" for level in levels if counts[level]]
    return ", ".join([*parts, f"{counts['ok']} ok"])
