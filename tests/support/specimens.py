"""One working instance of every stage type, on small models and a small collection."""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from milvus_pipeline import Stage, registry

DIM = 16
TEXTS = ("a red apple", "a green pear and a red plum", "the blue sky", "", "plum jam, where the red plum is")


class World:
    """What the stages of the suite are made with; each part is made when it is first asked for."""

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder = folder
        self.encoder = encoder

    def vector(self, text: str) -> np.ndarray:
        """A unit vector that depends on the text alone."""
        vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    @cached_property
    def bert(self) -> str:
        """A small BERT for sequence classification."""
        from support.checkpoints import bert_classifier

        return str(bert_classifier(self.folder / "bert"))

    @cached_property
    def xlm_roberta(self) -> str:
        """A small XLM-RoBERTa for sequence classification."""
        from support.checkpoints import xlm_roberta_classifier

        return str(xlm_roberta_classifier(self.folder / "xlm_roberta"))

    @cached_property
    def collection(self) -> dict[str, Any]:
        """A Milvus Lite collection of ``TEXTS``."""
        from pymilvus import DataType, MilvusClient

        uri = str(self.folder / "world.db")
        client = MilvusClient(uri)
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("text", DataType.VARCHAR, max_length=1000)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"params": {"nlist": 4}})
        client.create_collection("world", schema=schema, index_params=index)
        client.insert(
            "world", [{"id": i, "vector": self.vector(text).tolist(), "text": text} for i, text in enumerate(TEXTS)]
        )
        client.flush("world")
        client.close()
        return {"uri": uri, "collection": "world", "params": {"nprobe": 4}, "limit": 5}


MAKERS = {
    "encode": lambda world: {"model": world.encoder, "device": "cpu"},
    "milvus_search": lambda world: world.collection,
    "cross_encoder": lambda world: {"model": world.bert, "device": "cpu"},
    "bge": lambda world: {"model": world.xlm_roberta, "device": "cpu"},
    "late_interaction": lambda world: {"model": world.encoder, "device": "cpu"},
    "truncate": lambda world: {"max_tokens": 12, "tokenizer": world.encoder},
}


def specimen(kind: str, world: World) -> Stage:
    """A closed stage of the type; a type that is not listed is made without arguments."""
    return registry.get(kind)(**MAKERS.get(kind, lambda world: {})(world))
