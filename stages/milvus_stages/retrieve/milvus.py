"""Placeholder, being written."""

from typing import ClassVar

from milvus_pipeline import Stage


class MilvusSearch(Stage):
    """Being written."""

    type: ClassVar[str] = "milvus_search"
