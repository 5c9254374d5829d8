"""What a type checker must see of the public face; checked by mypy, never run."""

from collections.abc import Sequence
from typing import ClassVar, assert_type

from milvus_pipeline import (
    Context,
    Hit,
    Pipeline,
    Query,
    Reranker,
    RerankResult,
    SearchResult,
    Stage,
    register,
)
from milvus_stages import BGE, CrossEncoder, Encode, LateInteraction, MilvusSearch, Truncate


@register("typed_reranker")
class TypedReranker(Reranker):
    """A plugin's `score` may return a plain list."""

    weight: float = 1.0

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score a text."""
        return [self.weight for _ in texts]


class TypedStage(Stage):
    """A plugin's `process` gets and returns results."""

    type: ClassVar[str] = "typed_stage"

    def process(self, results: Sequence[SearchResult], context: Context) -> list[SearchResult]:
        """Cut every result to one hit."""
        return [result.with_hits(result.hits[:1]) for result in results]


def runs(pipeline: Pipeline) -> None:
    """The types of what a run gives."""
    with pipeline as opened:
        assert_type(opened, Pipeline)
    assert_type(pipeline.run("text"), SearchResult)
    assert_type(
        pipeline.run_batch(["text", Query("text", filter="year > {y}", filter_params={"y": 1})]), list[SearchResult]
    )
    for hit in pipeline.run("text"):
        assert_type(hit, Hit)
        assert_type(hit.score, float)


async def awaits(pipeline: Pipeline) -> None:
    """The types of what an awaited run gives."""
    async with pipeline as opened:
        assert_type(opened, Pipeline)
    assert_type(await pipeline.arun("text"), SearchResult)
    assert_type(await pipeline.arun_batch(["text"]), list[SearchResult])


def stages() -> Pipeline:
    """Arguments of the constructors are known to the checker, decorated plugins included."""
    assert_type(BGE(device="cpu")("query", ["a", "b"], top_k=3), list[RerankResult])
    assert_type(TypedReranker(weight=2.0), TypedReranker)
    TypedReranker(wieght=2.0)  # type: ignore[call-arg]
    BGE(top_k="many")  # type: ignore[arg-type]
    return Pipeline(
        [
            Encode(model="org/name"),
            MilvusSearch(uri="./x.db", collection="x", limit=100, params={"nprobe": 16}),
            CrossEncoder(top_k=10),
            LateInteraction(name="second"),
            TypedStage(),
            Truncate(top_k=5),
        ],
        timeout=2.0,
    )
