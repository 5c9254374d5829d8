"""The report of an evaluation: one HTML file that needs nothing else, neither a network nor scripts."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from milvus_pipeline.errors import PipelineError
from milvus_pipeline.evaluation.records import Evaluation
from milvus_pipeline.evaluation.report import prose as words
from milvus_pipeline.evaluation.report.movements import movement_groups
from milvus_pipeline.evaluation.report.page import page
from milvus_pipeline.evaluation.report.stage_charts import change_class
from milvus_pipeline.evaluation.report.svg import shown
from milvus_pipeline.extras import require

_WANTED_BY: Final = "the report"
_FILTERS: Final = {
    "shown": shown,
    "value": words.value_said,
    "signed": words.signed,
    "p": words.p_said,
    "seconds": words.seconds_said,
    "money": words.money_said,
    "number": words.number_text,
    "change_class": change_class,
}


def report_html(evaluation: Evaluation) -> str:
    """The report as the text of one HTML file.

    Whatever stands in it from queries, documents and configurations is escaped. The file asks for nothing: its
    Content-Security-Policy allows its own style and its own script, by their hashes, and nothing else. The script
    sorts tables; without it all the same is shown.

    Args:
        evaluation: with at least one system and one measure.

    Raises:
        StageError: Jinja2 is not installed; the message is the pip command.
    """
    style, script = _asset("page.css"), _asset("page.js")
    template = _environment().get_template("page.html.j2")
    return str(
        template.render(
            page=page(evaluation),
            groups=movement_groups(evaluation),
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def write_report(evaluation: Evaluation, path: str | Path) -> None:
    """Write the report to a file, which appears whole or not at all; one that is there is replaced.

    Args:
        evaluation: as ``report_html`` takes it.
        path: of the file.

    Raises:
        PipelineError: it cannot be written there.
        StageError: Jinja2 is not installed; the message is the pip command.
    """
    path = Path(path)
    html = report_html(evaluation)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        try:
            draft.write_text(html, encoding="utf-8", errors="replace", newline="\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise PipelineError(
            f"the report cannot be written: {error.strerror}", "name another file", place=str(path)
        ) from error


def _environment() -> Any:
    jinja = require("jinja2", extra="evaluate", wanted_by=_WANTED_BY)
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(_asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja.StrictUndefined,
    )
    environment.filters.update(_FILTERS)
    return environment


def _asset(name: str) -> str:
    """A file of the report's, with the line ends that a browser sees; its hash depends on them."""
    return files(__name__).joinpath("templates", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """The source expression by which a policy allows this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
