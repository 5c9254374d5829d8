"""``milvus-pipeline validate`` and ``milvus-pipeline schema``: configurations, without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from milvus_pipeline.cli.exit_codes import command, print_error
from milvus_pipeline.cli.options import Debug
from milvus_pipeline.config.file import json_schema
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.evaluation.variants import variants_of
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.text import count_text


@command
def validate(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Pipelines, YAML files.")],
    debug: Debug = False,
) -> int:
    """Check configurations without opening anything: every problem with its file, place and line.

    The exit code is 2 if any of them is wrong.
    """
    code = 0
    for path in configs:
        try:
            pipeline = Pipeline.from_yaml(path)
        except ConfigError as error:
            code = print_error(error)
        else:
            variants = f" ({count_text(len(variants_of(pipeline)), 'variant')})" if pipeline.sweep else ""
            typer.echo(f"{path}: ok: {' -> '.join(stage.name for stage in pipeline.stages)}{variants}")
    return code


@command
def schema(debug: Debug = False) -> int:
    """Print the JSON Schema of a configuration, with every registered stage, for editors."""
    typer.echo(json_text(json_schema(), indent=2))
    return 0
