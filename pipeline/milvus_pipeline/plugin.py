"""The public face for authors of stages; that for users of pipelines is ``milvus_pipeline``.

A stage subclasses ``Stage`` or ``Reranker``, gets a ``Context`` with its ``Deadline``, and is registered by an entry
point of the group ``milvus_pipeline.stages`` or by ``register``.
"""

# `A as A` marks a name as public for type checkers; at runtime `__all__` below does.
from milvus_pipeline.breaker import FAIR_SECONDS as FAIR_SECONDS
from milvus_pipeline.breaker import Breaker as Breaker
from milvus_pipeline.breaker import breaker_for as breaker_for
from milvus_pipeline.config.registry import register as register
from milvus_pipeline.config.registry import registry as registry
from milvus_pipeline.context import Context as Context
from milvus_pipeline.context import Deadline as Deadline
from milvus_pipeline.driver import adrive as adrive
from milvus_pipeline.driver import drive as drive
from milvus_pipeline.extras import require as require
from milvus_pipeline.findings import CheckContext as CheckContext
from milvus_pipeline.findings import Finding as Finding
from milvus_pipeline.findings import doctor as doctor
from milvus_pipeline.findings import share_text as share_text
from milvus_pipeline.ingest.ingest import CollectionStore as CollectionStore
from milvus_pipeline.ingest.ingest import CollectionWriter as CollectionWriter
from milvus_pipeline.ingest.ingest import Embedder as Embedder
from milvus_pipeline.problems import kind_of as kind_of
from milvus_pipeline.problems import suggestion as suggestion
from milvus_pipeline.records import RerankJob as RerankJob
from milvus_pipeline.reranker import Reranker as Reranker
from milvus_pipeline.retry import PASSING_STATUSES as PASSING_STATUSES
from milvus_pipeline.retry import async_retrying as async_retrying
from milvus_pipeline.retry import retry_after as retry_after
from milvus_pipeline.retry import retrying as retrying
from milvus_pipeline.run.threads import in_threads as in_threads
from milvus_pipeline.shared import Shared as Shared
from milvus_pipeline.stage import Stage as Stage
from milvus_pipeline.text import error_text as error_text
from milvus_pipeline.text import short_repr as short_repr

__all__ = [name for name in dir() if not name.startswith("_")]
