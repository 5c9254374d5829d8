"""Composable search pipelines for Milvus: retrieve, rerank, truncate.

The public face is this module, ``milvus_pipeline.jobs`` (files of queries, answered resumably),
``milvus_pipeline.evaluation`` (quality, latency and cost after each stage) and
``milvus_pipeline.ingest.passages`` (a folder
of texts, cut into records); the others are private to the project. Importing it loads none of torch, transformers,
pymilvus and httpx: a stage imports what it needs when it opens.
"""

from milvus_pipeline.breaker import FAIR_SECONDS, Breaker, BreakerSettings, breaker_for
from milvus_pipeline.config.collection import CollectionSpec, FieldSpec, IndexSpec
from milvus_pipeline.config.file import PipelineConfig, json_schema
from milvus_pipeline.config.registry import register, registry
from milvus_pipeline.context import Context, Deadline
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
    shown,
    told,
)
from milvus_pipeline.explain import Movement, Ranking, explain
from milvus_pipeline.extras import require
from milvus_pipeline.findings import CheckContext, Finding
from milvus_pipeline.ingest.ingest import CollectionStore, CollectionWriter, Embedder, IngestReport, ingest
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.problems import suggestion
from milvus_pipeline.records import Hit, Query, Reason, RerankResult, SearchResult, StageReport
from milvus_pipeline.reranker import Reranker, RerankJob
from milvus_pipeline.retry import PASSING_STATUSES, RetrySettings, async_retrying, retry_after, retrying
from milvus_pipeline.run.dry_run import DryRun
from milvus_pipeline.run.loop import adriven, driven
from milvus_pipeline.stage import Fallback, Stage
from milvus_pipeline.usage import total_planned, total_usage

__all__ = [
    "FAIR_SECONDS",
    "PASSING_STATUSES",
    "Breaker",
    "BreakerSettings",
    "CheckContext",
    "CircuitOpenError",
    "CollectionSpec",
    "CollectionStore",
    "CollectionWriter",
    "ConfigError",
    "Context",
    "Deadline",
    "DeadlineError",
    "DryRun",
    "Embedder",
    "Fallback",
    "FieldSpec",
    "Finding",
    "Hit",
    "IndexSpec",
    "IngestError",
    "IngestReport",
    "InputError",
    "Movement",
    "Pipeline",
    "PipelineConfig",
    "PipelineError",
    "Query",
    "QueryError",
    "Ranking",
    "Reason",
    "ReasonCode",
    "RerankJob",
    "RerankResult",
    "Reranker",
    "RetrySettings",
    "SearchResult",
    "ServiceError",
    "Stage",
    "StageError",
    "StageReport",
    "adriven",
    "async_retrying",
    "breaker_for",
    "driven",
    "explain",
    "ingest",
    "json_schema",
    "register",
    "registry",
    "require",
    "retry_after",
    "retrying",
    "shown",
    "suggestion",
    "told",
    "total_planned",
    "total_usage",
]
