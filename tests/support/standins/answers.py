"""Right and wrong replies of the service that answers with an object, one answer a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.standins.messages import Change, Request, Scripted, changed
from support.standins.provider import Provider

Answers = dict[str, Any]


def variants(service: Provider) -> dict[str, Scripted]:
    """Right, though unusual."""
    return {
        "tied": _answers(lambda answers: {name: {"type": "noul", "noul": 0.5} for name in answers}),
        "whole_scores": _answers(lambda answers: {name: {"type": "noul", "noul": 1} for name in answers}),
        "shuffled": _answers(lambda answers: {name: answers[name] for name in _shuffled(list(answers))}),
        "reversed": _answers(lambda answers: {name: answers[name] for name in reversed(answers)}),
        "unknown_members": changed(_with_unknown),
        "without_usage": changed(lambda body, request: {name: body[name] for name in body if name != "usage"}),
    }


def wrong(service: Provider) -> dict[str, Scripted]:
    """Not an answer to each question that was asked."""
    return {
        "index_unknown": _answers(lambda answers: {**dict(list(answers.items())[1:]), "another": _one(answers)}),
        "fewer": _answers(lambda answers: dict(list(answers.items())[:-1])),
        "none": _answers(lambda answers: {}),
        "one_more": _answers(lambda answers: {**answers, "another": _one(answers)}),
        "score_missing": _first({"type": "noul"}),
        "score_string": _first({"type": "noul", "noul": "0.5"}),
        "score_null": _first({"type": "noul", "noul": None}),
        "score_boolean": _first({"type": "noul", "noul": True}),
        "score_nan": _first({"type": "noul", "noul": float("nan")}),
        "score_infinite": _first({"type": "noul", "noul": float("inf")}),
        "score_minus_infinite": _first({"type": "noul", "noul": float("-inf")}),
        "score_too_high_for_a_float": _first({"type": "noul", "noul": 10**400}),
        "row_null": _first(None),
        "row_list": _first(["noul", 0.5]),
        "list_missing": changed(lambda body, request: {name: body[name] for name in body if name != "answers"}),
        "list_null": changed(lambda body, request: {**body, "answers": None}),
        "list_string": changed(lambda body, request: {**body, "answers": "none"}),
        "list_of_answers": changed(lambda body, request: {**body, "answers": [{"index": 0, "noul": 0.5}]}),
    }


def _answers(edit: Callable[[Answers], Answers]) -> Change:
    return changed(lambda body, request: {**body, "answers": edit(body["answers"])})


def _first(answer: Any) -> Change:
    """Another answer to the first question."""
    return _answers(lambda answers: {**answers, next(iter(answers)): answer})


def _one(answers: Answers) -> Any:
    return next(iter(answers.values()))


def _shuffled(names: list[str]) -> list[str]:
    return names[1::2] + names[::2]


def _with_unknown(body: Any, request: Request) -> Any:
    answers = {name: {**answer, "novelty": 2027} for name, answer in body["answers"].items()}
    return {"novelty": ["since", 2027], **body, "answers": answers}
