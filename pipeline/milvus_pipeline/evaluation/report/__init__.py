"""The report of an evaluation: one HTML file that needs nothing else, neither a network nor scripts."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from milvus_pipeline.config.file import to_yaml
from milvus_pipeline.evaluation.records import Evaluation
from milvus_pipeline.evaluation.report.bump import shade
from milvus_pipeline.evaluation.report.movements import movement_groups
from milvus_pipeline.evaluation.report.page import change_class, page, percent
from milvus_pipeline.evaluation.report.prose import statuses_text
from milvus_pipeline.extras import require
from milvus_pipeline.files.output import open_whole
from milvus_pipeline.files.plain import plain
from milvus_pipeline.text import (
    cut_text,
    difference_text,
    figures_text,
    measure_text,
    money_text,
    number_text,
    one_line,
    p_value_text,
    time_text,
)

_FILTERS: Final = {
    "change_class": change_class,
    "cut": cut_text,
    "difference": difference_text,
    "line": one_line,
    "measure": measure_text,
    "money": money_text,
    "number": number_text,
    "p": lambda p_value: p_value_text(p_value).removeprefix("p ").removeprefix("= "),
    "p_value": p_value_text,
    "percent": percent,
    "seconds": time_text,
    "shade": shade,
    "statuses": statuses_text,
    "usage": figures_text,
    "yaml": lambda data: to_yaml(plain(data)),  # a plugin may put anything into its identity
}


def report_html(evaluation: Evaluation) -> str:
    """Return the report as the text of one HTML file.

    Everything in it that comes from queries, documents and configurations is escaped. The file loads nothing: its
    Content-Security-Policy allows its own style and its own script, by their hashes, and nothing else. The script
    only sorts tables and opens linked queries; all content is visible without it.

    Args:
        evaluation: with at least one system and one measure.

    Raises:
        StageError: Jinja2 is not installed; the message has the pip command.
    """
    jinja = require("jinja2", extra="evaluate", wanted_by="the report")
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(_asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja.StrictUndefined,
    )
    environment.filters.update(_FILTERS)
    assets: dict[str, Any] = {"style": _asset("page.css"), "script": _asset("page.js")}
    assets |= {f"{name}_hash": _hash(text) for name, text in assets.items()}
    template = environment.get_template("page.html.j2")
    return str(template.render(page=page(evaluation), groups=movement_groups(evaluation), **assets))


def write_report(evaluation: Evaluation, path: str | Path) -> None:
    """Write the report to a file, replacing an existing one; it appears complete or not at all.

    Args:
        evaluation: as for ``report_html``.
        path: of the file.

    Raises:
        PipelineError: it cannot be written.
        StageError: Jinja2 is not installed; the message has the pip command.
    """
    html = report_html(evaluation)
    with open_whole(Path(path)) as file:
        file.write(html)


def _asset(name: str) -> str:
    """Return a file of the report, with the line ends that a browser sees; its hash depends on them."""
    return files(__name__).joinpath("templates", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """Return the source expression by which a policy allows this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
