"""Outputs of ``evaluate``: tables, JSON or CSV, and the rankings as TREC runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from milvus_pipeline.cli.evaluation_tables import print_evaluation
from milvus_pipeline.cli.exit_codes import UsageError
from milvus_pipeline.cli.tables import console_on
from milvus_pipeline.cli.writers import check_output, open_output
from milvus_pipeline.evaluation.records import ComparisonIndex, Evaluation
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.files.results import OutputError, TrecRun
from milvus_pipeline.records import SearchResult

_UNSAFE = re.compile(r"[^\w.=+-]+", re.ASCII)
_LONGEST_NAME = 100  # characters
FiguresFormat = Literal["table", "json", "csv"]


def check_outputs(files: Mapping[str, Path | None], runs: Path | None, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Check before any work that all outputs can be written.

    Raises:
        UsageError: one cannot, or is an input, or two are the same file.
    """
    seen: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        check_output(path, overwrite, *inputs)
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise UsageError(f"is also the file of {other}", "name another file", place=f"{option} {path}")
    if runs is not None:
        place = f"--runs {runs}"
        if runs.exists() and not runs.is_dir():
            raise UsageError("is a file", "name a folder", place=place)
        if not runs.parent.is_dir():
            raise UsageError(f"the folder {runs.parent} does not exist", "create it first", place=place)
        if runs.is_dir() and any(runs.glob("*.run")) and not overwrite:
            raise UsageError("already contains runs", "name another folder, or pass --overwrite", place=place)


def write_evaluation(evaluation: Evaluation, form: FiguresFormat | None, output: Path | None, overwrite: bool) -> None:
    """Write the figures, by default in the format of the file's name, else as a table.

    Raises:
        OutputError: the file cannot be written.
    """
    kind = form or (output.suffix.removeprefix(".") if output is not None else "table")
    with open_output(output, overwrite) as stream:
        if kind == "json":
            stream.write(json_text(evaluation.to_dict(), indent=2) + "\n")
        elif kind == "csv":
            rows = list(csv_rows(evaluation))
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            print_evaluation(evaluation, console_on(stream))


def csv_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """Yield a row for each stage of each system, all with the same columns; empty for what a stage does not have.

    ``final`` is true in the last row of each system: those alone are a table of the systems.
    """
    paths = list(dict.fromkeys(path for system in evaluation.systems for path in system.variant))
    words = sorted({word for system in evaluation.systems for stage in system.stages for word in stage.usage})
    index = ComparisonIndex(evaluation)
    for system in evaluation.systems:
        for position, stage in enumerate(system.stages, start=1):
            final = position == len(system.stages)
            row: dict[str, Any] = {"system": system.name}
            for path in paths:
                value = system.variant.get(path, "")
                row[path] = value if isinstance(value, str | int | float) else json_text(value)
            row |= {"on_front": system.on_front, "position": position, "stage": stage.stage, "type": stage.type}
            row |= {"final": final, "queries": evaluation.judged, "hits": stage.hits}
            for name in evaluation.measures:
                row[name] = stage.measures.get(name, "")
                row[f"{name} ceiling"] = stage.ceilings.get(name, "")
                before = index.of_stage(system.name, stage.stage, name)
                whole = index.of_system(system.name, name) if final else None
                for what, found in (("stage before", before), ("baseline", whole)):
                    row[f"{name} against {what}"] = "" if found is None else found.difference
                    row[f"{name} against {what} p"] = "" if found is None else found.p_corrected
            for what, latency in (("latency", stage.latency), ("elapsed", stage.elapsed)):
                row |= {f"{what}_{one}_seconds": getattr(latency, one) for one in ("mean", "p50", "p95", "p99")}
            row |= {"shared": stage.shared, "cached": stage.cached}
            row |= {f"{status}_queries": stage.statuses.get(status, 0) for status in ("partial", "skipped", "failed")}
            row |= {f"usage.{word}": stage.usage.get(word, "") for word in words}
            yield row | {"cost": "" if stage.cost is None else stage.cost}


class RunFiles:
    """Writes the final rankings of systems as TREC runs, a file each, query by query.

    Args:
        folder: created if it is missing; runs with the same names in it are replaced.
        systems: their names, from which the file names are made.

    Attributes:
        problems: by system, why a query is missing in its run.

    Raises:
        UsageError: the folder cannot be created.
    """

    def __init__(self, folder: Path, systems: Sequence[str]) -> None:
        self._paths = {name: folder / f"{stem}.run" for name, stem in zip(systems, _file_stems(systems), strict=True)}
        self._formats = {name: TrecRun(name) for name in systems}
        self.problems: dict[str, OutputError] = {}
        self._begun: set[str] = set()
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", place=f"--runs {folder}") from error

    def add(self, system: str, results: Sequence[SearchResult]) -> None:
        """Write the next results of a system."""
        path = self._paths[system]
        lines = []
        for result in results:
            try:
                lines.append(self._formats[system].text(result))
            except OutputError as error:
                missing = OutputError(f"queries are missing; the first one: {error.what}", place=str(path))
                self.problems.setdefault(system, missing)
        try:
            # Opened each time: a sweep may have more variants than a process may have open files.
            with path.open("a" if system in self._begun else "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(lines)
            self._begun.add(system)
        except OSError as error:
            self.problems.setdefault(system, OutputError(f"is incomplete: {error.strerror}", place=str(path)))


def _file_stems(names: Sequence[str]) -> list[str]:
    """Return the names as unique file names without a suffix."""
    stems: list[str] = []
    for name in names:
        stem = _UNSAFE.sub("_", name).strip("._")[:_LONGEST_NAME] or "system"
        taken = {other.lower() for other in stems}
        candidates = (stem if number == 1 else f"{stem}_{number}" for number in range(1, len(names) + 1))
        stems.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
    return stems
