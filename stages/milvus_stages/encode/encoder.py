"""Placeholder, being written."""

from typing import ClassVar

from milvus_pipeline import Stage


class Encode(Stage):
    """Being written."""

    type: ClassVar[str] = "encode"
