"""One working instance of every stage type, on small models and a small collection."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from milvus_pipeline.config.file import registry
from milvus_pipeline.plugin import Stage
from support.collections import make_collection, make_index
from support.standins import PROVIDERS, StandIn

DIM = 16
TEXTS = ("a red apple", "a green pear and a red plum", "the blue sky", "", "plum jam, where the red plum is")


class World:
    """What the stages of the suite are made with; each part is made when it is first asked for, and ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._services: dict[str, StandIn] = {}
        self._ending = ExitStack()

    def close(self) -> None:
        """End the services, and take their keys out of the environment."""
        self._services.clear()
        self._ending.close()

    def service(self, provider: str, **others: Any) -> dict[str, Any]:
        """The arguments that lead to a stand-in for a rerank service, with others; one server for all that ask."""
        variable = f"SPECIMEN_KEY_{provider.upper()}"
        if provider not in self._services:
            server = self._services[provider] = self._ending.enter_context(StandIn(provider))
            os.environ[variable] = server.key
            self._ending.callback(os.environ.pop, variable, None)
        return {"base_url": self._services[provider].url, "api_key_env": variable, **others}

    def vector(self, text: str) -> np.ndarray:
        """A unit vector that depends on the text alone."""
        vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    @cached_property
    def encoder(self) -> str:
        """A small BERT that makes vectors of texts."""
        from support.checkpoints import encoder

        return str(encoder(self.folder / "encoder"))

    @cached_property
    def bert(self) -> str:
        """A small BERT for sequence classification."""
        from support.checkpoints import bert_classifier

        return str(bert_classifier(self.folder / "bert"))

    @cached_property
    def xlm_roberta(self) -> str:
        """A small XLM-RoBERTa for sequence classification, in a folder of a name that FlagEmbedding knows."""
        from support.checkpoints import xlm_roberta_classifier

        return str(xlm_roberta_classifier(self.folder / "bge-reranker-base"))

    @cached_property
    def collection(self) -> dict[str, Any]:
        """A Milvus Lite collection of ``TEXTS``."""
        from pymilvus import MilvusClient

        uri = str(self.folder / "world.db")
        client = MilvusClient(uri)
        vectors = np.stack([self.vector(text) for text in TEXTS])
        make_collection(client, "world", {"id": range(len(TEXTS)), "vector": vectors, "text": TEXTS})
        make_index(client, "world", "IVF_FLAT", nlist=4)
        client.close()
        return {"uri": uri, "collection": "world", "params": {"nprobe": 4}, "limit": 5}


MAKERS = {
    "encode": lambda world: {"model": world.encoder, "device": "cpu"},
    "milvus_search": lambda world: world.collection,
    "cross_encoder": lambda world: {"model": world.bert, "device": "cpu"},
    "bge": lambda world: {"model": world.xlm_roberta, "device": "cpu"},
    "late_interaction": lambda world: {"model": world.encoder, "device": "cpu"},
    "rerank_api": lambda world: world.service("vllm", options={"truncate_prompt_tokens": -1}),
    "pymilvus_model": lambda world: {
        "function": "BGERerankFunction",
        "arguments": {"model_name": world.xlm_roberta, "device": "cpu", "use_fp16": False},
    },
    "truncate": lambda world: {"max_tokens": 12, "tokenizer": world.encoder},
}


def specimen(kind: str, world: World) -> Stage:
    """Make a closed stage of the type.

    A hosted reranker with a stand-in needs no maker. The arguments of any other type come from the variable
    ``SPECIMENS``, a JSON object by type, which third parties set; if it has none, the stage is made without arguments.
    """
    others = json.loads(os.environ.get("SPECIMENS", "{}"))
    if kind in MAKERS:
        arguments = MAKERS[kind](world)
    else:
        arguments = world.service(kind) if kind in PROVIDERS else others.get(kind, {})
    return registry.get(kind)(**arguments)
