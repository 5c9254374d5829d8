"""Placeholder, being written."""

from typing import ClassVar

from milvus_pipeline import Stage


class Truncate(Stage):
    """Being written."""

    type: ClassVar[str] = "truncate"
