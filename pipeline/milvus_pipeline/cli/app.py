"""The commands, put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from milvus_pipeline.cli import doctor, evaluate, explain, ingest, run, split
from milvus_pipeline.cli import stages as describe
from milvus_pipeline.cli import validate as checks
from milvus_pipeline.extras import DISTRIBUTION

app = typer.Typer(
    name="milvus-pipeline",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help and usage errors: they read the same in a pipe, a log and a terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def milvus_pipeline(
    asked_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Search pipelines for Milvus: retrieve, rerank, truncate, as a YAML file says."""


app.command()(run.run)
app.command("evaluate")(evaluate.evaluate_command)
app.command("explain")(explain.explain_command)
app.command()(split.split)
app.command()(ingest.ingest)
app.command()(checks.validate)
app.command()(doctor.doctor)
app.command()(checks.schema)
app.command()(describe.stages)
