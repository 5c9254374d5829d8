"""A small collection on a server or in a file, and queries whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from milvus_pipeline import Query
from support.collections import make_collection, make_index
from support.load import Question

ROWS, DIM, LIMIT, CROWD = 2000, 32, 10, 100
COLLECTION = "things"


def unit(seed: int, shape: tuple[int, ...]) -> Any:
    """Return vectors of length 1, the same for the same seed."""
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


VECTORS = unit(0, (ROWS, DIM))


def questions(count: int = CROWD, dim: int = DIM, vectors: Any = VECTORS) -> Sequence[Question]:
    """Return queries with the keys of the nearest vectors by inner product."""
    queries = unit(1, (count, dim))
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :LIMIT]
    return [
        Question(Query(f"question {number}", vector=queries[number]), [int(key) for key in best[number]])
        for number in range(count)
    ]


def make_known_collection(
    uri: str, vectors: Any = VECTORS, flushed: bool = True, index_type: str = "FLAT", **params: Any
) -> None:
    """Make the collection anew, with keys 0, 1, ... and an exact index, or another.

    A server that is killed loses rows that were not flushed; flushing takes seconds.
    """
    from pymilvus import MilvusClient

    client = MilvusClient(uri, timeout=10, dedicated=True)
    keys = range(len(vectors))
    columns = {"id": keys, "vector": vectors, "text": [f"text {key}" for key in keys]}
    make_collection(client, COLLECTION, columns, flush=flushed)
    make_index(client, COLLECTION, index_type, **params)
    client.close()
