"""``milvus-pipeline explain``: shows how the documents of one query moved through the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from milvus_pipeline.cli.exit_codes import UsageError, command, print_warning
from milvus_pipeline.cli.options import Config, Debug, TableOrJson, Timeout
from milvus_pipeline.cli.tables import (
    INDENT,
    LEAST_TEXT,
    Column,
    console_on,
    fallback_line,
    fitted_columns,
    heading,
    id_column,
    print_indented,
    room_for_texts,
    step_cell,
    text_table,
    times_line,
    trouble_lines,
)
from milvus_pipeline.cli.writers import open_output
from milvus_pipeline.explain import Movement, Standing
from milvus_pipeline.explain import explain as explain_query
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.files.qrels import read_qrels
from milvus_pipeline.files.queries import read_queries
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.text import one_line


@command
def explain(
    config: Config,
    query: Annotated[str | None, typer.Option("--query", "-q", metavar="TEXT", help="The query.")] = None,
    queries: Annotated[Path | None, typer.Option(metavar="FILE", help="A file that has the query with --id.")] = None,
    query_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="In --queries and in --qrels.")] = None,
    qrels: Annotated[Path | None, typer.Option(metavar="FILE", help="TREC qrels or BEIR's TSV; needs --id.")] = None,
    show: Annotated[int, typer.Option(min=1, help="Documents to list at most, of those kept and of those cut.")] = 10,
    output_format: TableOrJson = "table",
    timeout: Timeout = None,
    debug: Debug = False,
) -> int:
    """Show how each document of a query moved: its place and score after each stage, and which stage cut it.

    With --qrels and --id the judged documents are shown with their grades, and relevant ones that no stage found are
    listed. --timeout bounds the query, and the wait for the server when opening.
    """
    wanted = _find_query(query, queries, query_id, qrels)
    judged = None
    if qrels is not None and query_id is not None:
        judged = read_qrels(qrels).get(query_id)
        if judged is None:
            print_warning(f"{qrels}: has no judgements for the query {query_id}")
    pipeline = Pipeline.from_yaml(config)
    pipeline.open(timeout)
    with pipeline:
        found = explain_query(pipeline, wanted, timeout=timeout, judged=judged)
    with open_output() as stream:
        if output_format == "json":
            stream.write(json_line({**asdict(found), "missed": found.missed}))
        else:
            print_movement(console_on(stream), found, show)
    return 0


def _find_query(query: str | None, queries: Path | None, query_id: str | None, qrels: Path | None) -> Query:
    """Return the query that the options name.

    Raises:
        UsageError: they name none, or two, or an id is missing.
    """
    if (query is None) == (queries is None):
        raise UsageError("give one query", "use --query TEXT, or --queries FILE with --id ID")
    if query_id is None and (qrels is not None or queries is not None):
        option = "--qrels" if queries is None else "--queries"
        raise UsageError("needs the id of the query", "pass --id ID too", place=option)
    if queries is None:
        return Query(query or "", id=query_id)
    for found in read_queries(queries, warn=print_warning):
        if isinstance(found, SearchResult):
            if found.query.id == query_id and found.error is not None:
                raise found.error
        elif found.id == query_id:
            return found
    raise UsageError(f"has no query with the id {query_id}", place=str(queries))


def print_movement(console: Console, movement: Movement, show: int) -> None:
    """Print the way of each document through the stages, those kept first, and the stages' times.

    Args:
        console: to print on.
        movement: of one query.
        show: documents to list at most, of those kept and of those cut; relevant ones are always listed.
    """
    console.print(heading(movement.query_id, movement.query))
    if movement.rankings:
        _print_documents(console, movement, show)
    else:
        print_indented(console, [Text("no stage found a document", style="dim")])
    print_indented(console, _footer(movement))


def _print_documents(console: Console, movement: Movement, show: int) -> None:
    judged = movement.judged or {}
    final = set(movement.rankings[-1].documents)
    kept = [document for document in movement.documents if document in final]
    gone = [document for document in movement.documents if document not in final]
    listed_kept, listed_gone = (
        [document for place, document in enumerate(part) if place < show or judged.get(document, 0) > 0]
        for part in (kept, gone)
    )
    listed = [*listed_kept, *listed_gone]
    texts = [movement.beginnings.get(document, "") for document in listed]
    width = console.width - INDENT
    columns = fitted_columns(_columns(movement, listed, scored=True), width)
    if room_for_texts(columns, width) < LEAST_TEXT:
        columns = _columns(movement, listed, scored=False)
        print_indented(console, [Text("(scores need a wider terminal, or --format json)", style="dim")])
    print_indented(console, [text_table(columns, texts, width, section=len(listed_kept))])
    hidden = {"kept": len(kept) - len(listed_kept), "cut": len(gone) - len(listed_gone)}
    if any(hidden.values()):
        counts = " and ".join(f"{count:,} {what}" for what, count in hidden.items() if count)
        text = f"not listed: {counts}; --show {max(len(kept), len(gone))} lists all"
        print_indented(console, [Text(text)])


def _columns(movement: Movement, documents: Sequence[str], *, scored: bool) -> list[Column]:
    """Return the final place, the grade, the id, and for each stage place, step and score of the documents."""
    standings = movement.standings()
    last = [standings[document][-1] for document in documents]
    columns = [Column("#", [Text(str(at.place) if at else "") for at in last])]
    if movement.judged is not None:
        columns.append(Column("judged", [_grade_cell(movement.judged.get(document)) for document in documents]))
    columns.append(id_column(documents))
    for number, ranking in enumerate(movement.rankings):
        ways = [
            (standings[document][number - 1] if number else None, standings[document][number]) for document in documents
        ]
        cells = _stage_cells(ways, first=not number, scored=scored)
        columns.append(Column(one_line(ranking.stage), cells, "left"))
    return columns


def _stage_cells(ways: Sequence[tuple[Standing | None, Standing | None]], *, first: bool, scored: bool) -> list[Text]:
    """Return the cells of one stage, aligned: ``12 ↑3  0.8123``."""
    places = [str(at.place) if at else "" for _, at in ways]
    steps = [Text("") if first else _step_cell(before, at) for before, at in ways]
    scores = [f"{at.score:.4f}" if scored and at and at.score is not None else "" for _, at in ways]
    place_width, step_width, score_width = (
        max(map(cell_len, texts), default=0) for texts in (places, [step.plain for step in steps], scores)
    )
    cells = []
    for place, step, score in zip(places, steps, scores, strict=True):
        cell = Text(place.rjust(place_width))
        if step_width:
            cell.append(" ").append_text(step).append(" " * (step_width - step.cell_len))
        if score_width:
            cell.append(f"  {score.rjust(score_width)}", style="dim")
        cells.append(cell)
    return cells


def _step_cell(before: Standing | None, at: Standing | None) -> Text:
    """Return what a stage did with a document: how far it moved it, that it is new, or that it was cut."""
    if at is not None:
        return step_cell(before.place - at.place) if before else Text("new", style="cyan")
    return Text("cut", style="red") if before else Text("")


def _grade_cell(grade: int | None) -> Text:
    if grade is None:
        return Text("")
    return Text(f"* {grade}", style="bold green") if grade > 0 else Text(str(grade), style="dim")


def _footer(movement: Movement) -> list[Text]:
    lines = []
    if movement.missed:
        missed = ", ".join(
            f"{one_line(document)} ({(movement.judged or {})[document]})" for document in movement.missed
        )
        lines.append(Text(f"judged relevant, and found by no stage: {missed}", style="yellow"))
    stages = [*movement.before, *movement.rankings]
    lines.append(times_line(stages))
    for one in stages:
        lines += trouble_lines(one)
        if one.stood_in is not None:
            lines.append(fallback_line(one.stood_in, one.stage))
    return lines
