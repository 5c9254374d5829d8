"""Placeholder, being written."""

from typing import ClassVar

from milvus_pipeline import Reranker


class BGE(Reranker):
    """Being written."""

    type: ClassVar[str] = "bge"
