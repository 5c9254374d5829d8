"""``milvus-pipeline explain``: how the documents of one query moved through the stages."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from milvus_pipeline.cli.exit_codes import Debug, UsageError, reported, tell
from milvus_pipeline.cli.movement_table import MovementTable
from milvus_pipeline.cli.writers import opened
from milvus_pipeline.explain import explain
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.files.qrels import read_qrels
from milvus_pipeline.files.queries import read_queries
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult


class MovementFormat(StrEnum):
    """How a movement is written."""

    TABLE = "table"
    JSON = "json"


@reported
def explain_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline, a YAML file.")],
    query: Annotated[str | None, typer.Option("--query", "-q", metavar="TEXT", help="The query.")] = None,
    queries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the query from this file instead: the one with --id.")
    ] = None,
    query_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The query's id, in --queries and in --qrels.")
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Judgements: TREC qrels, or BEIR's TSV. Marks what is judged for --id."),
    ] = None,
    show: Annotated[
        int, typer.Option(min=1, help="Documents to list at most: so many that were kept, and so many that were cut.")
    ] = 10,
    output_format: Annotated[
        MovementFormat, typer.Option("--format", help="A table, or one JSON document with everything.")
    ] = MovementFormat.TABLE,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Seconds that the query may take, and the server when opening. The config's own by default."
        ),
    ] = None,
    debug: Debug = False,
) -> int:
    """Show how each document of a query moved: its place and score after each stage, and which stage cut it.

    With --qrels and --id the judged documents bear their grades, and relevant ones that no stage found are named.
    """
    asked = _asked(query, queries, query_id, qrels)
    judged = None
    if qrels is not None and query_id is not None:
        judged = read_qrels(qrels).get(query_id)
        if judged is None:
            tell(f"warning: {qrels}: has no judgements for the query {query_id}")
    pipeline = Pipeline.from_yaml(config)
    pipeline.open(timeout)
    with pipeline:
        found = explain(pipeline, asked, timeout=timeout, judged=judged)
    with opened(None, overwrite=False) as stream:
        if output_format is MovementFormat.JSON:
            stream.write(json_line({**asdict(found), "missed": found.missed}))
        else:
            MovementTable(stream).write(found, show)
    return 0


def _asked(query: str | None, queries: Path | None, query_id: str | None, qrels: Path | None) -> Query:
    """The query that is meant.

    Raises:
        UsageError: there is none, or two, or what it is judged by cannot be told.
    """
    if (query is None) == (queries is None):
        raise UsageError("name one query: with --query TEXT, or with --queries FILE and --id ID")
    if query_id is None and (qrels is not None or queries is not None):
        raise UsageError(f"{'--qrels' if queries is None else '--queries'} needs --id ID, which says which query it is")
    if query is not None:
        return Query(query, id=query_id)
    return _read(queries or Path(), query_id)


def _read(queries: Path, query_id: str | None) -> Query:
    for query in read_queries(queries, warn=lambda message: tell(f"warning: {message}")):
        if isinstance(query, SearchResult):
            if query.query.id == query_id and query.error is not None:
                raise query.error
        elif query.id == query_id:
            return query
    raise UsageError(f"has no query with the id {query_id}", place=str(queries))
