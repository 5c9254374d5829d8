"""Where ``evaluate`` writes: tables, JSON or CSV to stdout or a file, and the rankings as TREC runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from milvus_pipeline.cli.evaluation_tables import print_evaluation
from milvus_pipeline.cli.exit_codes import UsageError
from milvus_pipeline.cli.tables import console_on
from milvus_pipeline.cli.writers import check_output, opened
from milvus_pipeline.evaluation.records import ComparisonIndex, Evaluation, Latency, StageFigures, SystemFigures
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.files.results import OutputError, TrecRun
from milvus_pipeline.records import SearchResult

_UNSAFE = re.compile(r"[^\w.=+-]+", re.ASCII)
_LONGEST_NAME = 100  # characters


class EvaluationFormat(StrEnum):
    """How an evaluation is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def chosen_evaluation_format(asked: EvaluationFormat | None, output: Path | None) -> EvaluationFormat:
    """The format asked for, else what the file's name says, else a table."""
    if asked is not None:
        return asked
    by_name = {".json": EvaluationFormat.JSON, ".csv": EvaluationFormat.CSV}
    return by_name.get(output.suffix, EvaluationFormat.TABLE) if output is not None else EvaluationFormat.TABLE


def check_outputs(files: Mapping[str, Path | None], folder: Path | None, overwrite: bool, inputs: set[Path]) -> None:
    """Find out before any work whether all outputs can be written.

    Raises:
        UsageError: one cannot, or is an input, or two are the same file.
    """
    seen: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        check_output(path, overwrite, None)
        if any(path.exists() and other.exists() and path.samefile(other) for other in inputs):
            raise UsageError(f"{option} {path}: is one of the files that are read", "write to another one")
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise UsageError(f"{option} {path}: is the file of {other}, too", "name another one")
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise UsageError("is a file", "name a folder", place=f"--runs {folder}")
        if not folder.parent.is_dir():
            raise UsageError(f"the folder {folder.parent} does not exist", "create it first", place=f"--runs {folder}")
        if folder.is_dir() and any(folder.glob("*.run")) and not overwrite:
            raise UsageError("holds runs already", "name another folder, or pass --overwrite", place=f"--runs {folder}")


def write_evaluation(evaluation: Evaluation, chosen: EvaluationFormat, output: Path | None, overwrite: bool) -> None:
    """Write the figures.

    Raises:
        OutputError: the file cannot take them.
    """
    with opened(output, overwrite) as stream:
        if chosen is EvaluationFormat.JSON:
            stream.write(json_text(evaluation.to_dict(), indent=2) + "\n")
        elif chosen is EvaluationFormat.CSV:
            rows = list(csv_rows(evaluation))
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            print_evaluation(evaluation, console_on(stream))


def csv_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """A row for each stage of each system, all with the same columns; empty where there is nothing to tell.

    ``final`` is true in the last row of each system: those alone are a table of the systems.
    """
    places = list(dict.fromkeys(place for system in evaluation.systems for place in system.variant))
    words = sorted({word for system in evaluation.systems for stage in system.stages for word in stage.usage})
    lookup = ComparisonIndex(evaluation)
    for system in evaluation.systems:
        for number, stage in enumerate(system.stages, start=1):
            final = number == len(system.stages)
            yield {
                "system": system.name,
                **{place: _cell(system.variant[place]) if place in system.variant else "" for place in places},
                "on_front": system.on_front,
                "position": number,
                "stage": stage.stage,
                "type": stage.type,
                "final": final,
                "queries": evaluation.judged,
                "hits": stage.hits,
                **_measured(evaluation.measures, lookup, system, stage, final),
                **_seconds("latency", stage.latency),
                **_seconds("elapsed", stage.elapsed),
                "shared": stage.shared,
                "cached": stage.cached,
                **{f"{status}_queries": stage.statuses.get(status, 0) for status in ("partial", "skipped", "failed")},
                **{f"usage.{word}": stage.usage.get(word, "") for word in words},
                "cost": "" if stage.cost is None else stage.cost,
            }


def _measured(
    measures: Sequence[str], lookup: ComparisonIndex, system: SystemFigures, stage: StageFigures, final: bool
) -> dict[str, Any]:
    """Value, ceiling and comparisons of each measure."""
    cells: dict[str, Any] = {}
    for name in measures:
        cells[name] = stage.measures.get(name, "")
        cells[f"{name} ceiling"] = stage.ceilings.get(name, "")
        before = lookup.of_stage(system.name, stage.stage, name)
        whole = lookup.of_system(system.name, name) if final else None
        for what, found in (("stage before", before), ("baseline", whole)):
            cells[f"{name} against {what}"] = "" if found is None else found.difference
            cells[f"{name} against {what} p"] = "" if found is None else found.p_corrected
    return cells


def _seconds(what: str, latency: Latency) -> dict[str, float]:
    return {f"{what}_{name}_seconds": getattr(latency, name) for name in ("mean", "p50", "p95", "p99")}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json_text(value)


class Runs:
    """Writes the final rankings of systems as TREC runs, a file each, as they come.

    Args:
        folder: made where it is missing; runs of the same names in it are replaced.
        systems: their names, of which the files' names are made.

    Raises:
        UsageError: a file cannot be made.
    """

    def __init__(self, folder: Path, systems: Sequence[str]) -> None:
        self._paths = {name: folder / f"{stem}.run" for name, stem in zip(systems, _stems(systems), strict=True)}
        self._formats = {name: TrecRun(name) for name in systems}
        self._problems: dict[str, str] = {}
        try:
            folder.mkdir(exist_ok=True)
            for path in self._paths.values():
                path.write_text("", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", place=f"--runs {folder}") from error

    def withdraw(self) -> None:
        """Take away the runs that nothing was written into: an evaluation that ran nothing leaves none behind."""
        for path in self._paths.values():
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()

    @property
    def problems(self) -> Iterable[str]:
        """Why a query is missing in a run; one a system."""
        return self._problems.values()

    def add(self, system: str, results: Sequence[SearchResult]) -> None:
        """Write the next results of a system."""
        path = self._paths[system]
        lines = []
        for result in results:
            try:
                lines.append(self._formats[system].text(result))
            except OutputError as error:
                self._problems.setdefault(system, f"{path}: lacks queries; the first: {error}")
        try:
            # Opened anew each time: a sweep may have more variants than a process may have files open.
            with path.open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(lines)
        except OSError as error:
            self._problems.setdefault(system, f"{path}: is not whole: {error.strerror}")


def _stems(names: Sequence[str]) -> list[str]:
    """Names as file names, each its own."""
    stems: list[str] = []
    for name in names:
        stem = _UNSAFE.sub("_", name).strip("._")[:_LONGEST_NAME] or "system"
        taken = {other.lower() for other in stems}
        numbers = iter(range(2, len(names) + 2))
        unique = stem
        while unique.lower() in taken:
            unique = f"{stem}_{next(numbers)}"
        stems.append(unique)
    return stems
