"""``python -m milvus_pipeline.demo CONFIG``: put Python's documentation into a collection, then ask it questions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from milvus_pipeline import Pipeline, PipelineError, SearchResult, ingest
from milvus_pipeline.cli.tables import moved, progress_on
from milvus_pipeline.demo.passages import passages

QUESTIONS = (
    "How do I delete a directory and everything in it?",
    "Which function tells me how similar two strings are?",
    "What happens to a finally clause when the try block returns?",
    "How can I run a function later, after some seconds, in another thread?",
    "Where do I find out how much disk space is left?",
)
PASSAGES = Path("data/python_docs.jsonl")
"""What the collection was made from; written last, so that it vouches for a whole collection."""

console = Console()


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration; returns the exit status."""
    if len(arguments) != 1:
        console.print("usage: python -m milvus_pipeline.demo CONFIG")
        return 2
    try:
        with Pipeline.from_yaml(_prepared(arguments[0])) as pipeline:
            started = time.perf_counter()
            results = pipeline.run_batch(QUESTIONS)
            seconds = time.perf_counter() - started
    except PipelineError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        return 1
    for result in results:
        console.print(_answers(result))
    console.print(_stages(results[0], len(results)))
    console.print(f"{len(results)} questions in {seconds:.2f} s. Ask your own:", highlight=False)
    command = f'.venv/bin/milvus-pipeline run {arguments[0]} --query "how do I sort a list by two keys?"'
    console.print(f"  {command}", style="bold", soft_wrap=True)  # one line, to be copied
    return 0


def _prepared(config: str) -> str:
    """The configuration's path, once its collection is there: made now, or found whole from an earlier run."""
    found = passages()
    lines = "".join(json.dumps(passage._asdict(), ensure_ascii=False) + "\n" for passage in found)
    pipeline = Pipeline.from_yaml(config)
    if PASSAGES.is_file() and PASSAGES.read_text(encoding="utf-8") == lines:
        try:
            with pipeline:
                console.print(f"The {len(found)} passages of Python's documentation are in the collection already.")
            return config
        except PipelineError:
            pass  # the collection is gone or broken: make it anew
    PASSAGES.unlink(missing_ok=True)
    with progress_on(console) as progress:
        task = progress.add_task("Encoding and inserting Python's documentation", total=len(found))
        ingest(
            pipeline,
            (passage._asdict() for passage in found),
            overwrite=True,
            on_progress=lambda done: progress.update(task, completed=done),
        )
    PASSAGES.parent.mkdir(exist_ok=True)  # a server keeps no file here, and so has made no folder
    PASSAGES.write_text(lines, encoding="utf-8")
    return config


def _answers(result: SearchResult) -> Table:
    """The answers to one question, with where each stood before and after reranking."""
    title = f"\n{result.query.text}"
    table = Table(title=title, title_style="bold", title_justify="left", show_lines=True, expand=True)
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("passage", ratio=1)
    for hit in result:
        before, *_, after = hit.ranks.values()
        name, _, text = (hit.text or "").partition(" ")
        text = text if len(text) <= 240 else text[:239] + "…"
        table.add_row(str(before), Text.assemble(moved(hit), f" {after}"), f"[bold]{_plain(name)}[/] {_plain(text)}")
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _stages(result: SearchResult, queries: int) -> Table:
    """What each stage took for the batch of questions, and what it did to the number of hits."""
    table = Table(
        title=f"\nWhat each stage took for {queries} questions together", title_justify="left", title_style="bold"
    )
    for name in ("stage", "seconds", "hits in", "hits out"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for report in result.reports:
        table.add_row(report.stage, f"{report.seconds:.3f}", str(report.hits_in), str(report.hits_out))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
