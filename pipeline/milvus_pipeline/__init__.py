"""Declarative search pipelines for Milvus: encode, retrieve, rerank, truncate.

This module is the public face for users of pipelines; ``milvus_pipeline.plugin`` is that for authors of stages. What is
in neither is private. Importing it loads none of torch, transformers, pymilvus and httpx: a stage imports what it needs
when it opens. Jobs, evaluation and passages are imported when one of their names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from milvus_pipeline.breaker import BreakerSettings
from milvus_pipeline.config.collection import CollectionSpec, FieldSpec, IndexSpec
from milvus_pipeline.config.file import PipelineConfig, json_schema
from milvus_pipeline.errors import (
    CircuitOpenError,
    ConfigError,
    DeadlineError,
    IngestError,
    InputError,
    PipelineError,
    QueryError,
    ReasonCode,
    ServiceError,
    StageError,
)
from milvus_pipeline.explain import Movement, Ranking, explain
from milvus_pipeline.findings import Finding
from milvus_pipeline.ingest.ingest import IngestReport, ingest
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Hit, Query, Reason, RerankResult, SearchResult, StageReport
from milvus_pipeline.retry import RetrySettings
from milvus_pipeline.run.dry_run import DryRun
from milvus_pipeline.stage import Fallback
from milvus_pipeline.usage import total_planned, total_usage

if TYPE_CHECKING:
    from milvus_pipeline.evaluation.evaluate import evaluate
    from milvus_pipeline.evaluation.records import Comparison, Evaluation, Latency, StageFigures, SystemFigures
    from milvus_pipeline.evaluation.report import report_html, write_report
    from milvus_pipeline.evaluation.variants import Variant, systems_of, variants_of
    from milvus_pipeline.files.qrels import Qrels, read_qrels
    from milvus_pipeline.files.queries import BadLines, InputFormat, read_queries
    from milvus_pipeline.files.results import JsonLines, OutputError, OutputFormat, TrecRun
    from milvus_pipeline.ingest.passages import passages
    from milvus_pipeline.jobs.claim import ResumeError
    from milvus_pipeline.jobs.job import JobProgress, JobReport, StoppedError, run_job
    from milvus_pipeline.jobs.manifest import Figures, Manifest, StageTotals, manifest_path, read_manifest

_LAZY = {
    "milvus_pipeline.evaluation.evaluate": ("evaluate",),
    "milvus_pipeline.evaluation.records": ("Comparison", "Evaluation", "Latency", "StageFigures", "SystemFigures"),
    "milvus_pipeline.evaluation.report": ("report_html", "write_report"),
    "milvus_pipeline.evaluation.variants": ("Variant", "systems_of", "variants_of"),
    "milvus_pipeline.files.qrels": ("Qrels", "read_qrels"),
    "milvus_pipeline.files.queries": ("BadLines", "InputFormat", "read_queries"),
    "milvus_pipeline.files.results": ("JsonLines", "OutputError", "OutputFormat", "TrecRun"),
    "milvus_pipeline.ingest.passages": ("passages",),
    "milvus_pipeline.jobs.claim": ("ResumeError",),
    "milvus_pipeline.jobs.job": ("JobProgress", "JobReport", "StoppedError", "run_job"),
    "milvus_pipeline.jobs.manifest": ("Figures", "Manifest", "StageTotals", "manifest_path", "read_manifest"),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "BadLines",
    "BreakerSettings",
    "CircuitOpenError",
    "CollectionSpec",
    "Comparison",
    "ConfigError",
    "DeadlineError",
    "DryRun",
    "Evaluation",
    "Fallback",
    "FieldSpec",
    "Figures",
    "Finding",
    "Hit",
    "IndexSpec",
    "IngestError",
    "IngestReport",
    "InputError",
    "InputFormat",
    "JobProgress",
    "JobReport",
    "JsonLines",
    "Latency",
    "Manifest",
    "Movement",
    "OutputError",
    "OutputFormat",
    "Pipeline",
    "PipelineConfig",
    "PipelineError",
    "Qrels",
    "Query",
    "QueryError",
    "Ranking",
    "Reason",
    "ReasonCode",
    "RerankResult",
    "ResumeError",
    "RetrySettings",
    "SearchResult",
    "ServiceError",
    "StageError",
    "StageFigures",
    "StageReport",
    "StageTotals",
    "StoppedError",
    "SystemFigures",
    "TrecRun",
    "Variant",
    "evaluate",
    "explain",
    "ingest",
    "json_schema",
    "manifest_path",
    "passages",
    "read_manifest",
    "read_qrels",
    "read_queries",
    "report_html",
    "run_job",
    "systems_of",
    "total_planned",
    "total_usage",
    "variants_of",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
