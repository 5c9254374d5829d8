"""Placeholder, being written."""

from typing import ClassVar

from milvus_pipeline import Reranker


class CrossEncoder(Reranker):
    """Being written."""

    type: ClassVar[str] = "cross_encoder"
