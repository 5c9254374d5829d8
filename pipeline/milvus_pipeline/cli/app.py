"""The application that the commands are registered with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from milvus_pipeline.cli import doctor, evaluate, explain, ingest, run, split, stages, validate
from milvus_pipeline.extras import DISTRIBUTION

app = typer.Typer(
    name="milvus-pipeline",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help and usage errors: they read the same in a pipe, a log and a terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def milvus_pipeline(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Search pipelines for Milvus: encode, retrieve, rerank, truncate, as a YAML file describes."""


for command in (
    run.run,
    evaluate.evaluate,
    explain.explain,
    split.split,
    ingest.ingest,
    validate.validate,
    doctor.doctor,
    validate.schema,
    stages.stages,
):
    app.command()(command)
