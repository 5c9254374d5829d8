"""The public face for authors of stages; that for users of pipelines is ``milvus_pipeline``.

A stage subclasses ``Stage`` or ``Reranker``, gets a ``Context`` with its ``Deadline``, and is registered by an entry
point of the group ``milvus_pipeline.stages`` or by ``register``.
"""

from milvus_pipeline.breaker import FAIR_SECONDS, Breaker, breaker_for
from milvus_pipeline.config.registry import register, registry
from milvus_pipeline.context import Context, Deadline
from milvus_pipeline.driver import adrive, drive
from milvus_pipeline.extras import require
from milvus_pipeline.findings import CheckContext, Finding, doctor, share_text
from milvus_pipeline.ingest.ingest import CollectionStore, CollectionWriter, Embedder
from milvus_pipeline.problems import kind_of, suggestion
from milvus_pipeline.records import RerankJob
from milvus_pipeline.reranker import Reranker
from milvus_pipeline.retry import PASSING_STATUSES, async_retrying, retry_after, retrying
from milvus_pipeline.run.threads import in_threads
from milvus_pipeline.shared import Shared
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text, short_repr

__all__ = [
    "FAIR_SECONDS",
    "PASSING_STATUSES",
    "Breaker",
    "CheckContext",
    "CollectionStore",
    "CollectionWriter",
    "Context",
    "Deadline",
    "Embedder",
    "Finding",
    "RerankJob",
    "Reranker",
    "Shared",
    "Stage",
    "adrive",
    "async_retrying",
    "breaker_for",
    "doctor",
    "drive",
    "error_text",
    "in_threads",
    "kind_of",
    "register",
    "registry",
    "require",
    "retry_after",
    "retrying",
    "share_text",
    "short_repr",
    "suggestion",
]
