"""``python -m milvus_pipeline.demo CONFIG``: ingests Python's documentation, then answers questions about it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from milvus_pipeline import Pipeline, PipelineError, ingest
from milvus_pipeline.cli.progress import ProgressBar
from milvus_pipeline.cli.tables import print_result
from milvus_pipeline.demo.passages import passages

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
        print_result(console, result)
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
    console.print(f"Encoding and inserting the {len(found)} passages of Python's documentation.")
    with ProgressBar("passages", lambda: len(found)) as bar:
        ingest(pipeline, (passage._asdict() for passage in found), overwrite=True, on_progress=bar.update)
    PASSAGES.parent.mkdir(exist_ok=True)  # with a server nothing has created it
    PASSAGES.write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
