"""``milvus-pipeline evaluate``: quality, latency and cost after each stage, of one pipeline or of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from milvus_pipeline.cli.evaluation_outputs import FiguresFormat, RunFiles, check_outputs, write_evaluation
from milvus_pipeline.cli.exit_codes import FAILED, UsageError, command, print_error, print_message, print_warning
from milvus_pipeline.cli.options import Debug, Overwrite, QueryFormat, Timeout
from milvus_pipeline.cli.progress import ProgressBar
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.evaluation.evaluate import evaluate as evaluate_systems
from milvus_pipeline.evaluation.measures import Measures
from milvus_pipeline.evaluation.records import Evaluation
from milvus_pipeline.evaluation.significance import Correction, Test
from milvus_pipeline.evaluation.variants import Variant, systems_of
from milvus_pipeline.extras import require
from milvus_pipeline.files.lines import STDIN
from milvus_pipeline.files.qrels import qrels_file, read_qrels
from milvus_pipeline.files.queries import read_queries, source_file
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.problems import suggestion

_MEASURES = ("nDCG@10", "R@100")
_MODULES = ("scipy.stats", "statsmodels.stats.multitest")  # needed only after all queries have been run


@command
def evaluate(
    configs: Annotated[
        list[Path], typer.Argument(metavar="CONFIG", help="Pipelines, YAML files, with or without `sweep`.")
    ],
    queries: Annotated[Path, typer.Option(metavar="FILE", help="Queries with ids; - is stdin.")],
    qrels: Annotated[Path, typer.Option(metavar="FILE", help="Judgements: TREC qrels, BEIR's TSV, or a BEIR folder.")],
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure", "-m", metavar="NAME", help="A measure, by its ir-measures name; repeat it for several."
        ),
    ] = None,
    input_format: QueryFormat = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries that go through the stages together.")] = 1,
    timeout: Timeout = None,
    test: Annotated[Test, typer.Option(help="The paired test of differences.")] = "t",
    correction: Annotated[Correction, typer.Option(help="How p-values are corrected for their number.")] = "holm",
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE.WORD=AMOUNT",
            help="Money per unit of usage: cohere.search_units=0.002; repeat it for several.",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="System to compare with; by default the first.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the figures here instead of stdout.")
    ] = None,
    output_format: Annotated[
        FiguresFormat | None, typer.Option("--format", help="Format of the figures; by default that of the file name.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page of HTML with charts.")] = None,
    runs: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also write rankings as TREC runs here.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> int:
    """Measure pipelines on judged queries: quality, ceilings, latency and cost after each stage.

    A configuration with a `sweep` means all of its variants, and stages that systems have in common run once.
    Systems are ranked by the first --measure (by default nDCG@10, then R@100), and compared with the --baseline.

    Queries are JSONL, TSV or lines, gzipped or not, or a BEIR folder, whose judgements are those in its test.tsv. With
    a --batch-size of 1 the times are what a caller waits; with more they are shares of a batch, which describe
    throughput. --timeout bounds a batch. --price is repeated for several units.

    Figures go to stdout or to a file (JSON if its name ends in .json, CSV if it ends in .csv, else tables), everything
    else to stderr. The exit code is 1 if any query failed; the figures are written all the same, and count the query as
    one that found nothing.
    """
    prices = dict(map(_parse_price, price or ()))
    if queries == STDIN and qrels == STDIN:
        raise UsageError("cannot both be stdin", "put one of them into a file", place="--queries and --qrels")
    inputs = [source_file(queries), qrels_file(qrels), *configs]
    check_outputs({"--output": output, "--report": report}, runs, overwrite, inputs)
    for module in (*_MODULES, *(("jinja2",) if report is not None else ())):
        require(module, extra="evaluate", wanted_by="evaluate")
    Measures(measure or _MEASURES)
    systems = _read_systems(configs, timeout, baseline)
    judged = read_qrels(qrels)
    run_files = RunFiles(runs, list(systems)) if runs is not None else None
    with ProgressBar("evaluate") as bar:
        evaluation = evaluate_systems(
            {name: variant.pipeline for name, variant in systems.items()},
            read_queries(queries, input_format, warn=print_warning),
            judged,
            measures=measure or _MEASURES,
            batch_size=batch_size,
            variants={name: variant.varies for name, variant in systems.items()},
            test=test,
            correction=correction,
            prices=prices,
            on_progress=lambda done, of: bar.update(done, total=of),
            on_results=run_files.add if run_files is not None else None,
            title=" and ".join(path.stem for path in configs),
        )
    for warning in evaluation.warnings:
        print_warning(warning)
    problems = {} if run_files is None else run_files.problems
    for problem in problems.values():
        print_error(problem)
    written = _write(evaluation, output_format, output, report, overwrite)
    failed = any(system.statuses.get("failed") for system in evaluation.systems)
    return FAILED if failed or problems or not written else 0


def _write(
    evaluation: Evaluation, chosen: FiguresFormat | None, output: Path | None, report: Path | None, overwrite: bool
) -> bool:
    """Write figures and report; return whether that worked. Figures go to stdout if their file fails."""
    written = _try_to_write(lambda: write_evaluation(evaluation, chosen, output, overwrite), output)
    if not written and output is not None:
        write_evaluation(evaluation, chosen, None, overwrite)
    if report is None:
        return written
    from milvus_pipeline.evaluation.report import write_report

    return _try_to_write(lambda: write_report(evaluation, report), report) and written


def _try_to_write(write: Callable[[], None], path: Path | None) -> bool:
    try:
        write()
    except PipelineError as error:
        print_error(error)
        return False
    if path is not None:
        print_message(f"written: {path}")
    return True


def _parse_price(text: str) -> tuple[str, float]:
    unit, _, amount = text.rpartition("=")
    try:
        return unit, float(amount)
    except ValueError:
        what = "must be STAGE.WORD=AMOUNT, such as cohere.search_units=0.002"
        raise UsageError(what, place=f"--price {text}") from None


def _read_systems(configs: list[Path], timeout: float | None, baseline: str | None) -> dict[str, Variant]:
    """Return the systems of all configurations by name, the baseline first."""
    read = {path: Pipeline.from_yaml(path) for path in dict.fromkeys(configs)}
    names = _name_pipelines(read)
    systems = systems_of(
        {
            names[path]: Pipeline(
                pipeline.stages,
                name=pipeline.name,
                timeout=pipeline.timeout if timeout is None else timeout,
                collection=pipeline.collection,
                sweep=pipeline.sweep,
            )
            for path, pipeline in read.items()
        }
    )
    if baseline is None:
        return systems
    if baseline not in systems:
        raise UsageError(f"there is no such system{suggestion(baseline, systems)}", place=f"--baseline {baseline}")
    return {baseline: systems[baseline], **systems}


def _name_pipelines(read: dict[Path, Pipeline]) -> dict[Path, str]:
    """Return unique names: those of the pipelines, else those of the files, else their paths."""
    for choose in (lambda path: read[path].name, lambda path: path.stem):
        names = {path: choose(path) for path in read}
        if max(Counter(names.values()).values()) == 1:
            return names
    return {path: str(path) for path in read}
