"""Placeholder, being written."""

from typing import ClassVar

from milvus_pipeline import Reranker


class LateInteraction(Reranker):
    """Being written."""

    type: ClassVar[str] = "late_interaction"
