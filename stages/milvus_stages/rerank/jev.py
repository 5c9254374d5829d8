"""TypeSafe's decision model Jev, as a reranker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from milvus_pipeline import ServiceError
from milvus_stages.hosted import BadReply, HostedReranker, Limits, Reply, estimated_tokens, get_member, read_figures

_FRAME_TOKENS: Final = 25
"""Estimated tokens of the names in a question."""


class Jev(HostedReranker):
    """Scores with Jev, which answers yes-or-no questions: the probability, from 0 to 1, that a document is relevant.

    Each document is one question of a request; answers do not depend on each other. Models: ``jev-latest``, a name that
    moves, or a version such as ``jev-1.13.0``.
    """

    type: ClassVar[str] = "jev"
    path: ClassVar[str] = "/v1/systemone"
    default_url: ClassVar[str | None] = "https://api.typesafe.ai"
    key_names: ClassVar[tuple[str, ...]] = ("TYPESAFE_API_KEY",)
    takes_top_n: ClassVar[bool] = False

    model: Annotated[str, Field(min_length=1, description="The service's name of the model.")] = "jev-latest"
    question: Annotated[str, Field(min_length=1, description="The question about each document.")] = (
        "Is the document relevant to the query?"
    )

    def limits(self) -> Limits:
        """Return the documented 64K tokens less a margin, and as many questions as a published client sends."""
        question = estimated_tokens(self.question) + _FRAME_TOKENS
        return Limits(documents=30, tokens=60_000, query_repeats=False, document_extra=question)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body; each document is in its own question, so that no other question sees it."""
        return {
            "model": self.model,
            "state": {"query": query},
            "questions": {
                f"d{index}": {"type": "noul", "instructions": {"task": self.question, "document": text}}
                for index, text in enumerate(texts)
            },
        }

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """Read the answers, an object by name of the question, in any order."""
        answers = get_member(data, "answers")
        if not isinstance(answers, Mapping):
            raise BadReply("the reply has no object 'answers'")
        usage = read_figures(get_member(data, "usage"), "input_tokens", "output_tokens")
        return Reply([_score_of(name, answer) for name, answer in answers.items()], usage)

    def too_large(self, error: ServiceError) -> bool:
        """Return whether the request was too long; the service does not truncate."""
        return super().too_large(error) or (error.status == 400 and error.code == "max_tokens_exceeded")


def _score_of(name: str, answer: Any) -> tuple[int, Any]:
    number = name.removeprefix("d")
    if not (number.isascii() and number.isdigit()) or name != f"d{int(number)}":
        raise BadReply("an answer has a name that no question had")
    if "noul" not in (answer if isinstance(answer, Mapping) else {}):
        raise BadReply(f"the answer on document {number} has no 'noul'")
    return int(number), answer["noul"]
