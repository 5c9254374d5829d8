"""What a type checker must see of the public face; checked by mypy, never run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, assert_type

from milvus_pipeline import (
    Comparison,
    DryRun,
    Evaluation,
    Fallback,
    Hit,
    JobProgress,
    JobReport,
    Manifest,
    Movement,
    Pipeline,
    PipelineError,
    Qrels,
    Query,
    Reason,
    ReasonCode,
    RerankResult,
    RetrySettings,
    SearchResult,
    ServiceError,
    StageFigures,
    StageReport,
    SystemFigures,
    Variant,
    evaluate,
    explain,
    manifest_path,
    passages,
    read_manifest,
    read_qrels,
    read_queries,
    run_job,
    total_planned,
    total_usage,
    variants_of,
    write_report,
)
from milvus_pipeline.plugin import CheckContext, Context, Finding, Reranker, RerankJob, Stage, register
from milvus_stages import BGE, TEI, Cohere, CrossEncoder, Encode, LateInteraction, MilvusSearch, RerankAPI, Truncate
from milvus_stages.hosted import FromEnv, HostedReranker, HostedRetry, Limits, Reply


@register("typed_reranker")
class TypedReranker(Reranker):
    """A plugin's `score` may return a plain list."""

    weight: float = 1.0

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score a text."""
        return [self.weight for _ in texts]


class TypedService(TypedReranker):
    """A reranker that sends texts somewhere says what it would send, and what it cost."""

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """One request a job."""
        for position, job in enumerate(jobs):
            context.note(position, planned={"requests": 1, "documents": len(job.texts)}, usage={"requests": 0})


class TypedHosted(HostedReranker):
    """A plugin for a service on HTTP."""

    type: ClassVar[str] = "typed_hosted"
    default_url: ClassVar[str | None] = "https://api.example.com"
    mesh: int = 3

    def payload(self, query: str, texts: list[str], top_n: int) -> dict[str, Any]:
        """Plain data."""
        return {"query": query, "documents": texts, "top_n": top_n, "mesh": self.mesh}

    def limits(self) -> Limits:
        """What the service takes."""
        return Limits(documents=100)

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """The base's own reading."""
        return super().parse(data, headers)


class TypedStage(Stage):
    """A plugin's `process` gets and returns results."""

    type: ClassVar[str] = "typed_stage"

    def process(self, results: Sequence[SearchResult], context: Context) -> list[SearchResult]:
        """Cut every result to one hit."""
        context.check()
        context.partial(0, "not all of it")
        context.partial(0, "not all of it", "no_score")
        context.partial(0, "not all of it", "no_idea")  # type: ignore[arg-type]
        return [result.with_hits(result.hits[:1]) for result in results]

    def check(self, context: CheckContext) -> Iterable[Finding]:
        """One finding."""
        yield Finding("ok", "dimension", f"{context.dim} numbers")


def runs(pipeline: Pipeline) -> None:
    """The types of what a run gives."""
    with pipeline as opened:
        assert_type(opened, Pipeline)
    assert_type(pipeline.run("text"), SearchResult)
    assert_type(
        pipeline.run_batch(["text", Query("text", filter="year > {y}", filter_params={"y": 1})]), list[SearchResult]
    )
    with closing(pipeline.run_batches([["text"], [Query("text")]], timeout=1.0, return_errors=True)) as stream:
        for results in stream:
            assert_type(results, list[SearchResult])
    texts: Iterator[list[str]] = iter([["text"]])
    assert_type(next(pipeline.run_batches(texts)), list[SearchResult])
    for hit in pipeline.run("text"):
        assert_type(hit, Hit)
        assert_type(hit.score, float)


def show_progress(progress: JobProgress) -> None:
    """Take the progress that a job reports after each batch."""
    assert_type(progress.queries, int)


def jobs(pipeline: Pipeline) -> None:
    """The types of what a job takes, reports and returns."""
    queries = read_queries("queries.tsv", bad_lines="skip", warn=print)
    assert_type(queries, Iterator[Query | SearchResult])
    report = run_job(pipeline, queries, "out.jsonl", resume=True, on_progress=show_progress)
    assert_type(report, JobReport)
    assert_type(report.figures.status, Counter[str])
    assert_type(read_manifest(manifest_path(report.output)), Manifest | None)
    run_job(pipeline, ["text", Query("text")], Path("out.trec"), bad_lines="fatal", output_format="trec")
    for passage in passages("folder", max_chars=500):
        assert_type(passage, dict[str, str])


def evaluations(pipeline: Pipeline) -> None:
    """The types of what is measured, compared and explained."""
    qrels = read_qrels("qrels.tsv")
    assert_type(qrels, Qrels)
    variants = variants_of(pipeline)
    assert_type(variants, dict[str, Variant])
    evaluation = evaluate(
        {name: variant.pipeline for name, variant in variants.items()},
        read_queries("queries.jsonl"),
        qrels,
        measures=["nDCG@10"],
        prices={"cohere.search_units": 0.002},
    )
    assert_type(evaluation, Evaluation)
    assert_type(evaluation.systems[0], SystemFigures)
    assert_type(evaluation.system("papers").stages[0], StageFigures)
    assert_type(evaluation.comparisons[0], Comparison)
    write_report(evaluate([pipeline, pipeline], [Query("text", id="q")], {"q": {"d": 1}}), "report.html")
    assert_type(explain(pipeline, "text", judged=qrels["q"]), Movement)


def costs(pipeline: Pipeline, results: list[SearchResult], report: StageReport) -> None:
    """The types of what runs cost, and of what they would."""
    assert_type(pipeline.dry_run(timeout=2.0), DryRun)
    with pipeline.dry_run() as dry:
        assert_type(dry, DryRun)
        planned = dry.run_batch(["text", Query("text")], timeout=1.0, return_errors=True)
    assert_type(planned, list[SearchResult])
    assert_type(report.usage, Mapping[str, int | float])
    assert_type(report.planned, Mapping[str, int | float])
    assert_type(results[0].usage, dict[str, Mapping[str, int | float]])
    assert_type(total_usage(result for result in results), dict[str, dict[str, int | float]])
    assert_type(total_planned(planned), dict[str, dict[str, int | float]])


def services() -> list[HostedReranker]:
    """What may be written for settings that are more than a number or a text."""
    Cohere(retry=RetrySettings(attempts=2), headers={"x-api-key": FromEnv(env="K"), "x-team": "search"})
    Cohere(retry={"attempts": 2, "max_wait": 5.0}, headers={"x-api-key": {"env": "K"}, "x-team": "search"})
    TEI()  # type: ignore[call-arg]
    TEI(base_url="http://localhost:8080", model="x")  # type: ignore[arg-type]
    Cohere(retry=3)  # type: ignore[arg-type]
    return [
        RerankAPI(base_url="http://localhost:8000", options={"truncate_prompt_tokens": -1}),
        TypedHosted(mesh=5, retry=HostedRetry(attempts=2)),
    ]


def failures(report: StageReport) -> None:
    """The types of what a failure contains."""
    assert_type(report.error, PipelineError | None)
    cause = report.error.__cause__ if report.error else None
    if isinstance(cause, ServiceError):
        assert_type(cause.status, int | None)
        assert_type(cause.code, str | None)
        assert_type(cause.request_id, str | None)
        assert_type(cause.retry_after, float | None)
        assert_type(cause.retryable, bool)
        assert_type(cause.attempts, int)


def degradation(pipeline: Pipeline, result: SearchResult) -> list[Stage]:
    """The types of the reasons of a result, of what a check finds, and of what may be written for `on_error`."""
    assert_type(result.reasons, list[Reason])
    assert_type(result.reasons[0].code, ReasonCode)
    assert_type(result.reports[0].reason_code, ReasonCode | None)
    assert_type(result.reports[0].fallback_for, str | None)
    assert_type(pipeline.check(timeout=5.0, send=True), list[Finding])
    assert_type(TypedStage().fallback, Stage | None)
    TypedStage(on_error="ignore")  # type: ignore[arg-type]
    TypedStage(on_error=Fallback("bge"))  # type: ignore[arg-type]
    return [
        TypedStage(on_error="skip"),
        Cohere(timeout=1.0, on_error=Fallback(BGE(on_error="skip"))),
        TypedStage(on_error={"fallback": TypedStage(name="spare")}),
    ]


async def alone() -> None:
    """The types of stages without a pipeline."""
    with Cohere(top_k=3) as rerank:
        assert_type(rerank, Cohere)
        assert_type(rerank("query", ["a", "b"]), list[RerankResult])
    async with TypedHosted() as hosted:
        assert_type(hosted, TypedHosted)
        assert_type(await hosted.acall("query", ["a", "b"], top_k=1), list[RerankResult])


async def awaits(pipeline: Pipeline) -> None:
    """The types of what an awaited run gives."""
    async with pipeline as opened:
        assert_type(opened, Pipeline)
    assert_type(await pipeline.arun("text"), SearchResult)
    assert_type(await pipeline.arun_batch(["text"]), list[SearchResult])


def stages() -> Pipeline:
    """Arguments of the constructors are known to the checker, decorated plugins included."""
    assert_type(BGE(device="cpu")("query", ["a", "b"], top_k=3), list[RerankResult])
    assert_type(TypedReranker(weight=2.0), TypedReranker)
    TypedReranker(wieght=2.0)  # type: ignore[call-arg]
    BGE(top_k="many")  # type: ignore[arg-type]
    return Pipeline(
        [
            Encode(model="org/name"),
            MilvusSearch(uri="./x.db", collection="x", limit=100, params={"nprobe": 16}),
            CrossEncoder(top_k=10),
            LateInteraction(name="second"),
            TypedStage(),
            Truncate(top_k=5),
        ],
        timeout=2.0,
    )
