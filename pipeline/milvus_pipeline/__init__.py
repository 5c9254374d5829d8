"""Declarative search pipelines for Milvus: encode, retrieve, rerank, truncate.

This module is the public face for users of pipelines; ``milvus_pipeline.plugin`` is that for authors of stages. What is
in neither is private. Importing it loads none of torch, transformers, pymilvus and httpx: a stage imports what it needs
when it opens. Jobs, evaluation and passages are imported when one of their names is first used.
"""

import importlib
import types
import typing

# `A as A` marks a name as public for type checkers; at runtime `__all__` below does.
from milvus_pipeline.breaker import BreakerSettings as BreakerSettings
from milvus_pipeline.config.collection import CollectionSpec as CollectionSpec
from milvus_pipeline.config.collection import FieldSpec as FieldSpec
from milvus_pipeline.config.collection import IndexSpec as IndexSpec
from milvus_pipeline.config.file import PipelineConfig as PipelineConfig
from milvus_pipeline.config.file import json_schema as json_schema
from milvus_pipeline.errors import CircuitOpenError as CircuitOpenError
from milvus_pipeline.errors import ConfigError as ConfigError
from milvus_pipeline.errors import DeadlineError as DeadlineError
from milvus_pipeline.errors import IngestError as IngestError
from milvus_pipeline.errors import InputError as InputError
from milvus_pipeline.errors import PipelineError as PipelineError
from milvus_pipeline.errors import QueryError as QueryError
from milvus_pipeline.errors import ReasonCode as ReasonCode
from milvus_pipeline.errors import ServiceError as ServiceError
from milvus_pipeline.errors import StageError as StageError
from milvus_pipeline.explain import Movement as Movement
from milvus_pipeline.explain import Ranking as Ranking
from milvus_pipeline.explain import explain as explain
from milvus_pipeline.findings import Finding as Finding
from milvus_pipeline.ingest.ingest import IngestReport as IngestReport
from milvus_pipeline.ingest.ingest import ingest as ingest
from milvus_pipeline.pipeline import Pipeline as Pipeline
from milvus_pipeline.records import Hit as Hit
from milvus_pipeline.records import Query as Query
from milvus_pipeline.records import Reason as Reason
from milvus_pipeline.records import RerankResult as RerankResult
from milvus_pipeline.records import SearchResult as SearchResult
from milvus_pipeline.records import StageReport as StageReport
from milvus_pipeline.retry import RetrySettings as RetrySettings
from milvus_pipeline.run.dry_run import DryRun as DryRun
from milvus_pipeline.stage import Fallback as Fallback
from milvus_pipeline.usage import total_planned as total_planned
from milvus_pipeline.usage import total_usage as total_usage

if typing.TYPE_CHECKING:
    from milvus_pipeline.evaluation.evaluate import evaluate as evaluate
    from milvus_pipeline.evaluation.records import Comparison as Comparison
    from milvus_pipeline.evaluation.records import Evaluation as Evaluation
    from milvus_pipeline.evaluation.records import Latency as Latency
    from milvus_pipeline.evaluation.records import StageFigures as StageFigures
    from milvus_pipeline.evaluation.records import SystemFigures as SystemFigures
    from milvus_pipeline.evaluation.report import report_html as report_html
    from milvus_pipeline.evaluation.report import write_report as write_report
    from milvus_pipeline.evaluation.variants import Variant as Variant
    from milvus_pipeline.evaluation.variants import systems_of as systems_of
    from milvus_pipeline.evaluation.variants import variants_of as variants_of
    from milvus_pipeline.files.qrels import Qrels as Qrels
    from milvus_pipeline.files.qrels import read_qrels as read_qrels
    from milvus_pipeline.files.queries import BadLines as BadLines
    from milvus_pipeline.files.queries import InputFormat as InputFormat
    from milvus_pipeline.files.queries import read_queries as read_queries
    from milvus_pipeline.files.results import JsonLines as JsonLines
    from milvus_pipeline.files.results import OutputError as OutputError
    from milvus_pipeline.files.results import OutputFormat as OutputFormat
    from milvus_pipeline.files.results import TrecRun as TrecRun
    from milvus_pipeline.ingest.passages import passages as passages
    from milvus_pipeline.jobs.claim import ResumeError as ResumeError
    from milvus_pipeline.jobs.job import JobProgress as JobProgress
    from milvus_pipeline.jobs.job import JobReport as JobReport
    from milvus_pipeline.jobs.job import StoppedError as StoppedError
    from milvus_pipeline.jobs.job import run_job as run_job
    from milvus_pipeline.jobs.manifest import Figures as Figures
    from milvus_pipeline.jobs.manifest import Manifest as Manifest
    from milvus_pipeline.jobs.manifest import StageTotals as StageTotals
    from milvus_pipeline.jobs.manifest import manifest_path as manifest_path
    from milvus_pipeline.jobs.manifest import read_manifest as read_manifest

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

__all__ = sorted(
    name
    for name, value in {**globals(), **_MODULE_OF}.items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
)


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
