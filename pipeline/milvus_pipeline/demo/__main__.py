"""``python -m milvus_pipeline.demo CONFIG``: ingests Python's documentation, then answers questions about it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from milvus_pipeline import Pipeline, PipelineError, SearchResult, ingest
from milvus_pipeline.cli.tables import moved_cell
from milvus_pipeline.demo.passages import passages
from milvus_pipeline.text import cut_text

QUESTIONS = (
    "How do I delete a directory and everything in it?",
    "Which function tells me how similar two strings are?",
    "What happens to a finally clause when the try block returns?",
    "How can I run a function later, after some seconds, in another thread?",
    "Where do I find out how much disk space is left?",
)
PASSAGES = Path("data/python_docs.jsonl")
"""The passages in the collection; written last, so that its existence proves that the collection is complete."""

console = Console()


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration and return the exit code."""
    if len(arguments) != 1:
        console.print("usage: python -m milvus_pipeline.demo CONFIG")
        return 2
    try:
        _fill_collection(arguments[0])
        with Pipeline.from_yaml(arguments[0]) as pipeline:
            started = time.perf_counter()
            results = pipeline.run_batch(QUESTIONS)
            seconds = time.perf_counter() - started
    except PipelineError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        return 1
    for result in results:
        console.print(_answers_table(result))
    console.print(_stages_table(results[0], len(results)))
    console.print(f"{len(results)} questions in {seconds:.2f} s. Ask your own:", highlight=False)
    command = f'.venv/bin/milvus-pipeline run {arguments[0]} --query "how do I sort a list by two keys?"'
    console.print(f"  {command}", style="bold", soft_wrap=True)  # one line, to be copied
    return 0


def _fill_collection(config: str) -> None:
    """Fill the collection of the configuration, unless it is complete from an earlier run."""
    found = passages()
    lines = "".join(json.dumps(passage._asdict(), ensure_ascii=False) + "\n" for passage in found)
    pipeline = Pipeline.from_yaml(config)
    if PASSAGES.is_file() and PASSAGES.read_text(encoding="utf-8") == lines:
        try:
            with pipeline:
                console.print(f"The {len(found)} passages of Python's documentation are in the collection already.")
            return
        except PipelineError:
            pass  # the collection is gone or broken: create it again
    PASSAGES.unlink(missing_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Encoding and inserting Python's documentation", total=len(found))
        ingest(
            pipeline,
            (passage._asdict() for passage in found),
            overwrite=True,
            on_progress=lambda done: progress.update(task, completed=done),
        )
    PASSAGES.parent.mkdir(exist_ok=True)  # with a server nothing has created it
    PASSAGES.write_text(lines, encoding="utf-8")


def _answers_table(result: SearchResult) -> Table:
    """Return the answers to one question, each with its place before and after reranking."""
    title = f"\n{result.query.text}"
    table = Table(title=title, title_style="bold", title_justify="left", show_lines=True, expand=True)
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("passage", ratio=1)
    for hit in result:
        before, *_, after = hit.ranks.values()
        name, _, text = (hit.text or "").partition(" ")
        passage = Text.assemble((name, "bold"), f" {cut_text(text, 240)}")
        table.add_row(str(before), Text.assemble(moved_cell(hit), f" {after}"), passage)
    return table


def _stages_table(result: SearchResult, queries: int) -> Table:
    """Return the time of each stage for all questions together, and the number of hits before and after it."""
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
