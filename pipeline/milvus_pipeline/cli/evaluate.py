"""``milvus-pipeline evaluate``: quality, latency and cost after each stage, of one pipeline or of several."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from milvus_pipeline.cli.evaluation_outputs import (
    EvaluationFormat,
    Runs,
    check_outputs,
    chosen_evaluation_format,
    write_evaluation,
)
from milvus_pipeline.cli.exit_codes import FAILED, Debug, UsageError, reported, tell, tell_error
from milvus_pipeline.cli.tables import progress_bar
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.evaluation.evaluate import evaluate
from milvus_pipeline.evaluation.measures import Measures
from milvus_pipeline.evaluation.records import Evaluation
from milvus_pipeline.evaluation.variants import Variant, systems_of
from milvus_pipeline.extras import require
from milvus_pipeline.files.lines import STDIN
from milvus_pipeline.files.qrels import qrels_file, read_qrels
from milvus_pipeline.files.queries import InputFormat, read_queries, source_file
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.problems import suggestion

_MEASURES = ("nDCG@10", "R@100")
_MODULES = ("scipy.stats", "statsmodels.stats.multitest")  # wanted only when all queries have been run


class PairedTest(StrEnum):
    """The paired test of differences between rankings."""

    T = "t"
    PERMUTATION = "permutation"


class Correction(StrEnum):
    """The correction of p-values for the number of comparisons."""

    HOLM = "holm"
    BONFERRONI = "bonferroni"
    FDR_BH = "fdr_bh"
    NONE = "none"


@reported
def evaluate_command(
    configs: Annotated[
        list[Path], typer.Argument(metavar="CONFIG", help="Pipelines, YAML files; each with a `sweep` or without.")
    ],
    queries: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Queries with ids: JSONL, TSV or lines, gzipped or not; a BEIR folder; - is stdin."
        ),
    ],
    qrels: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Judgements: TREC qrels, or BEIR's TSV; a BEIR folder stands for its test.tsv."
        ),
    ],
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            "-m",
            metavar="NAME",
            help="What to measure, by its ir-measures name (nDCG@10, R@100, AP, RR@10); may be given many times. "
            "Systems are ranked by the first. nDCG@10 and R@100 by default.",
        ),
    ] = None,
    input_format: Annotated[
        InputFormat | None, typer.Option(help="How to read the queries; by default as the file's name says.")
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Queries that go through the stages together. With 1 the times are what a caller waits; with more "
            "they are shares of a batch, which tell of throughput.",
        ),
    ] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Seconds that a batch (of --batch-size queries) may take. The configs' own by default."
        ),
    ] = None,
    test: Annotated[PairedTest, typer.Option(help="The paired test of differences.")] = PairedTest.T,
    correction: Annotated[
        Correction, typer.Option(help="How p-values are corrected for the number of comparisons.")
    ] = Correction.HOLM,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE.WORD=AMOUNT",
            help="Money a unit of a hosted stage's usage: cohere.search_units=0.002; may be given many times.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The system that others are compared with; by default the first one."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the figures here instead of to stdout.")
    ] = None,
    output_format: Annotated[
        EvaluationFormat | None,
        typer.Option("--format", help="By default json for a .json file, csv for a .csv file, else a table."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report as well: one HTML file with charts.")
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the final ranking of each system as a TREC run into this folder."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")] = False,
    debug: Debug = False,
) -> int:
    """Measure pipelines on judged queries: quality, ceilings, latency and cost after each stage.

    A config with a `sweep` stands for all of its variants. Stages that systems have in common run once. Figures go to
    stdout or to a file, everything else to stderr. Ends with 1 if any query failed; the figures are written all the
    same, with the query as one that found nothing.
    """
    prices = dict(map(_price, price or ()))
    inputs = _inputs(queries, qrels)
    check_outputs({"--output": output, "--report": report}, runs, overwrite, {*inputs, *configs})
    for module in (*_MODULES, *(("jinja2",) if report is not None else ())):
        require(module, extra="evaluate", wanted_by="evaluate")
    Measures(measure or _MEASURES)
    systems = _with_baseline_first(_systems(configs, timeout), baseline)
    judged = read_qrels(qrels)
    written = Runs(runs, list(systems)) if runs is not None else None
    with ExitStack() as unfinished, progress_bar() as progress:
        if written is not None:
            unfinished.callback(written.withdraw)
        task = progress.add_task("evaluate", total=None)
        evaluation = evaluate(
            {name: variant.pipeline for name, variant in systems.items()},
            read_queries(queries, input_format, warn=_warn),
            judged,
            measures=measure or _MEASURES,
            batch_size=batch_size,
            variants={name: variant.varies for name, variant in systems.items()},
            test=test.value,
            correction=correction.value,
            prices=prices,
            on_progress=lambda done, of: progress.update(task, completed=done, total=of),
            on_results=written.add if written is not None else None,
            title=" and ".join(path.stem for path in configs),
        )
        unfinished.pop_all()
    return _finished(evaluation, written, output, chosen_evaluation_format(output_format, output), report, overwrite)


def _finished(
    evaluation: Evaluation,
    runs: Runs | None,
    output: Path | None,
    chosen: EvaluationFormat,
    report: Path | None,
    overwrite: bool,
) -> int:
    """Write what was found out; the exit code. Figures that a file cannot take go to stdout."""
    for warning in evaluation.warnings:
        _warn(warning)
    code = FAILED if any(system.statuses.get("failed") for system in evaluation.systems) else 0
    for problem in runs.problems if runs is not None else ():
        tell(f"error: {problem}")
        code = FAILED
    try:
        write_evaluation(evaluation, chosen, output, overwrite)
        _tell_written(output)
    except PipelineError as error:
        tell_error(error)
        code = FAILED
        if output is not None:  # the work shall not be lost
            write_evaluation(evaluation, chosen, None, overwrite)
    if report is not None:
        from milvus_pipeline.evaluation.report import write_report

        try:
            write_report(evaluation, report)
            _tell_written(report)
        except PipelineError as error:
            tell_error(error)
            code = FAILED
    return code


def _tell_written(path: Path | None) -> None:
    if path is not None:
        tell(f"written: {path}")


def _inputs(queries: Path, qrels: Path) -> list[Path]:
    """The files that are read."""
    if queries == STDIN and qrels == STDIN:
        raise UsageError("--queries and --qrels: only one of the two can be stdin")
    return [source_file(queries), qrels_file(qrels)]


def _price(text: str) -> tuple[str, float]:
    unit, _, amount = text.rpartition("=")
    stage, _, word = unit.rpartition(".")
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if not (stage and word and math.isfinite(number) and number >= 0):
        raise UsageError("must be STAGE.WORD=AMOUNT, such as cohere.search_units=0.002", place=f"--price {text}")
    return unit, number


def _systems(configs: list[Path], timeout: float | None) -> dict[str, Variant]:
    """The systems of all configurations by name; of files with the same name in them the files' names are taken."""
    read = {path: Pipeline.from_yaml(path) for path in dict.fromkeys(configs)}
    names = _names(read)
    pipelines = {
        names[path]: Pipeline(
            pipeline.stages,
            name=pipeline.name,
            timeout=pipeline.timeout if timeout is None else timeout,
            collection=pipeline.collection,
            sweep=pipeline.sweep,
        )
        for path, pipeline in read.items()
    }
    return systems_of(pipelines)


def _names(read: dict[Path, Pipeline]) -> dict[Path, str]:
    for choice in (lambda path: read[path].name, lambda path: path.stem):
        names = {path: choice(path) for path in read}
        if max(Counter(names.values()).values()) == 1:
            return names
    return {path: str(path) for path in read}


def _with_baseline_first(systems: dict[str, Variant], baseline: str | None) -> dict[str, Variant]:
    if baseline is None:
        return systems
    if baseline not in systems:
        raise UsageError("there is no such system", suggestion(baseline, systems), place=f"--baseline {baseline}")
    return {baseline: systems[baseline], **systems}


def _warn(message: str) -> None:
    tell(f"warning: {message}")
