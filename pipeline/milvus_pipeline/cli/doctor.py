"""``milvus-pipeline doctor``: checks a pipeline before its first query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.exit_codes import FAILED, command
from milvus_pipeline.cli.options import Config, Debug, TableOrJson
from milvus_pipeline.cli.tables import console_on
from milvus_pipeline.cli.writers import open_output
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.findings import Finding, Level
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.run.doctor import CHECK_SECONDS
from milvus_pipeline.text import count_text, one_line

_STYLES: Final[dict[Level, str]] = {"ok": "green", "warning": "yellow", "error": "bold red"}
_INGEST: Final = "`milvus-pipeline ingest`"
_DEMO: Final = "python_docs.yaml"  # its collection is created by `make demo`


@command
def doctor(
    config: Config,
    send: Annotated[bool, typer.Option("--send", help="Send hosted rerankers one short request, at its cost.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a stage's servers.")] = CHECK_SECONDS,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    output_format: TableOrJson = "table",
    debug: Debug = False,
) -> int:
    """Check a pipeline before its first query: servers, collection, index and its recall, models, keys, limits.

    Nothing is loaded or changed, and nothing is paid for without --send. Every stage and its fallbacks are checked, and
    each problem comes with the next step. The exit code is 1 if there is an error.
    """
    pipeline = Pipeline.from_yaml(config)
    ingest = "`make demo`" if config.name == _DEMO else f"`milvus-pipeline ingest {config} FILE...`"
    findings = [
        replace(found, next_step=found.next_step.replace(_INGEST, ingest))
        for found in pipeline.check(timeout=timeout, send=send)
    ]
    counts = Counter(found.level for found in findings)
    with open_output() as stream:
        if output_format == "json":
            document = {
                "pipeline": pipeline.name,
                "config": str(config),
                "summary": {level: counts[level] for level in _STYLES},
                "findings": [found.to_dict() for found in findings],
            }
            stream.write(json_text(document, indent=2) + "\n")
        else:
            console = console_on(stream)
            console.print(_table(findings))
            console.print()
            console.print(Text(f"{one_line(pipeline.name)}: {_counts_text(counts)}", style="bold"))
    return FAILED if counts["error"] or (strict and counts["warning"]) else 0


def _table(findings: Sequence[Finding]) -> Table:
    """Return a row per finding below the name of its stage, so that the texts get most of the width."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("stage, check", overflow="fold", max_width=24)
    table.add_column("result", no_wrap=True)
    table.add_column("found, and → what to do", ratio=1, overflow="fold")
    before = None
    for found in findings:
        if found.stage != before:
            table.add_row(Text(one_line(found.stage), style="bold"), Text(""), Text(""))
        before = found.stage
        text = Text(one_line(found.message))
        if found.next_step:
            text.append(f"\n→ {one_line(found.next_step)}", style="bold")
        table.add_row(Text(f"  {one_line(found.topic)}"), Text(found.level, style=_STYLES[found.level]), text)
    return table


def _counts_text(counts: Counter[Level]) -> str:
    """Return ``2 errors, 1 warning, 14 ok``."""
    levels: tuple[Level, ...] = ("error", "warning")
    return ", ".join([*(count_text(counts[level], level) for level in levels if counts[level]), f"{counts['ok']} ok"])
