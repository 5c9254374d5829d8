"""Jev, TypeSafe System One: POST /v1/systemone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from support.standins.messages import Reply, Request, Scripted
from support.standins.provider import Body, FastAPI, refuse
from support.standins.relevance import relevance, tokens

_KINDS = {
    400: "api_usage_error",
    401: "authentication_error",
    403: "authentication_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_QUESTION = {"type", "instructions", "criteria"}


@dataclass
class Jev(FastAPI):
    """A decision model: one yes/no question for each document. Settings.

    ``max_tokens`` of a request, ``max_state_tokens`` of the state and the longest question (a token is four
    characters); ``max_questions``; ``models`` (empty: any).
    """

    name = "jev"
    paths = ("/v1/systemone",)
    list_key = "answers"
    score_key = "noul"

    models: tuple[str, ...] = ()
    max_tokens: int = 64_000
    max_state_tokens: int = 32_000
    max_questions: int = 512

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """An object under ``detail``."""
        kind = kind or _KINDS.get(status, "internal_error")
        return Reply(status, {"detail": {"error_type": kind, "message": message}})

    def missing_key(self) -> Reply:
        """403, though documented as 401."""
        return self.error(403, "Not authenticated")

    @staticmethod
    def overflow() -> Reply:
        """Without a message."""
        return Reply(400, {"detail": {"error_type": "max_tokens_exceeded"}})

    def check(self, body: Body) -> None:
        """Images are not asked about here."""
        body.keys(("model", "state", "questions"), ())
        body.text("model", blank=False)
        if not isinstance(body.members["state"], str | dict | list):
            body.refuse("state", "must be a string, an object or a list")
        if self.models and body.members["model"] not in self.models:
            refuse(self.error(400, "unknown model"), "model: unknown")
        questions = body.members["questions"]
        if not isinstance(questions, dict) or not questions:
            body.refuse("questions", "must be an object with at least one entry")
        if len(questions) > self.max_questions:
            refuse(Reply(400, {"detail": "too many questions"}), "questions: too many")
        for name, question in questions.items():
            self._check_question(body, name, question)
        state = _size(body.members["state"])
        sizes = [_size(question) for question in questions.values()]
        if state + sum(sizes) > self.max_tokens or state + max(sizes) > self.max_state_tokens:
            refuse(self.overflow(), "max_tokens_exceeded")
        for question in questions.values():
            if _read_pair(body.members["state"], question["instructions"]) is None:
                body.refuse("questions", "the instructions do not say which document is meant")

    def _check_question(self, body: Body, name: str, question: Any) -> None:
        where = "questions"
        if not isinstance(question, dict) or not {"type", "instructions"} <= question.keys() <= _QUESTION:
            body.refuse(where, f"{name} must have a type, instructions and perhaps criteria, and nothing else")
        if question["type"] != "noul":
            refuse(self.error(400, f"bad question type {question['type']!r}"), f"{where}: bad type")
        if not isinstance(question["instructions"], str | dict | list) or not question["instructions"]:
            body.refuse(where, f"the instructions of {name} must be a string, an object or a list, and not empty")
        criteria = question.get("criteria", {})
        if not isinstance(criteria, dict) or not criteria.keys() <= {"true", "false"}:
            body.refuse(where, f"the criteria of {name} may be true and false")

    def reply(self, body: dict[str, Any]) -> Reply:
        """Answers by the questions' names, and not in their order."""
        answers = {}
        for name, question in reversed(body["questions"].items()):
            pair = _read_pair(body["state"], question["instructions"])
            answers[name] = {"type": "noul", "noul": relevance(*pair) if pair else 0.5}
        questions = sum(_size(question) for question in body["questions"].values())
        usage = {"input_tokens": _size(body["state"]) + questions, "output_tokens": len(answers)}
        return Reply(200, {"model": "jev-1.13.0", "answers": answers, "usage": usage})

    def stamped(self, reply: Reply, request: Request) -> Reply:
        """An id in the headers."""
        return reply.but(headers={"x-typesafe-request-id": f"request-{request.number:06}"})

    def errors(self) -> dict[str, Scripted]:
        """All three shapes of ``detail``."""
        return {
            "400_overflow": self.overflow(),
            "400_unknown_model": self.error(400, "unknown model"),
            "400_text": Reply(400, {"detail": "too many options"}),
            "401_wrong_key": self.error(401, "invalid api key"),
            "403_missing_key": self.missing_key(),
            "422_validation": self.invalid("questions", "must have at least one entry", {}),
            "429_rate_limit": self.error(429, "too many requests"),
            "500_internal": self.error(500, "internal error"),
            "529_overloaded": self.error(529, "overloaded"),
        }


def _read_pair(state: Any, instructions: Any) -> tuple[str, str] | None:
    """Query and text of one question, read as the model would: the instructions must hold the document."""
    if not isinstance(state, dict) or not isinstance(instructions, dict) or "document" not in instructions:
        return None
    return _string(state.get("query", "")), _string(instructions["document"])


def _string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(value: Any) -> int:
    return tokens(_string(value))
