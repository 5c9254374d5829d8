"""Right and wrong replies of the services that answer with a list, one entry a document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.standins.messages import Change, Reply, Request, Scripted, changed
from support.standins.provider import Provider

Row = dict[str, Any]


def variants(service: Provider) -> dict[str, Scripted]:
    """Right, though unusual."""
    score, echo = service.score_key, service.echo_key
    found: dict[str, Scripted] = {
        "tied": _each(service, lambda row: row.update({score: 0.5})),
        "whole_scores": _each(service, lambda row: row.update({score: 1})),
        "negative_scores": _each(service, lambda row: row.update({score: row[score] - 2})),
        "shuffled": _rows(service, lambda rows, request: rows[1::2] + rows[::2]),
        "reversed": _rows(service, lambda rows, request: rows[::-1]),
        "unknown_members": changed(lambda body, request: _with_unknown(service, body)),
        "without_usage": _without_usage,
        "echo_string": _echoing(service, lambda text: text),
        "echo_object": _echoing(service, lambda text: {"text": text}),
        "echo_null": _each(service, lambda row: row.update({echo: None})),
    }
    return found


def wrong(service: Provider) -> dict[str, Scripted]:
    """Not a ranking of the documents that were sent."""
    score, key = service.score_key, service.list_key
    found: dict[str, Scripted] = {
        "index_too_high": _first(service, lambda row, request: row.update(index=_count(service, request))),
        "index_negative": _first(service, lambda row, request: row.update(index=-1)),
        "index_repeated": _rows(service, _repeat),
        "index_boolean": _first(service, lambda row, request: row.update(index=bool(row["index"]))),
        "index_float": _first(service, lambda row, request: row.update(index=row["index"] + 0.5)),
        "index_whole_float": _first(service, lambda row, request: row.update(index=float(row["index"]))),
        "index_string": _first(service, lambda row, request: row.update(index=str(row["index"]))),
        "index_null": _first(service, lambda row, request: row.update(index=None)),
        "index_missing": _first(service, lambda row, request: row.pop("index")),
        "fewer": _rows(service, lambda rows, request: rows[:-1]),
        "none": _rows(service, lambda rows, request: []),
        "one_more": _rows(service, lambda rows, request: [*rows, _another(service, rows, request)]),
        "score_missing": _first(service, lambda row, request: row.pop(score)),
        "score_string": _first(service, lambda row, request: row.update({score: str(row[score])})),
        "score_null": _first(service, lambda row, request: row.update({score: None})),
        "score_boolean": _first(service, lambda row, request: row.update({score: True})),
        "score_nan": _first(service, lambda row, request: row.update({score: float("nan")})),
        "score_infinite": _first(service, lambda row, request: row.update({score: float("inf")})),
        "score_minus_infinite": _first(service, lambda row, request: row.update({score: float("-inf")})),
        "score_too_high_for_a_float": _first(service, lambda row, request: row.update({score: 10**400})),
        "row_null": _rows(service, lambda rows, request: [None, *rows[1:]]),
        "row_list": _rows(service, lambda rows, request: [[0, 0.5], *rows[1:]]),
    }
    if key is None:
        return {**found, "list_missing": Reply(200, {}), "list_in_an_object": changed(lambda body, _: {"x": body})}
    return {
        **found,
        "list_missing": changed(lambda body, request: {name: body[name] for name in body if name != key}),
        "list_null": changed(lambda body, request: {**body, key: None}),
        "list_string": changed(lambda body, request: {**body, key: "none"}),
        "list_object": changed(lambda body, request: {**body, key: {"0": 0.5}}),
    }


def _rows(service: Provider, edit: Callable[[list[Row], Request], list[Any]]) -> Change:
    """A change of the list as a whole."""
    key = service.list_key

    def change(body: Any, request: Request) -> Any:
        return edit(body, request) if key is None else {**body, key: edit(body[key], request)}

    return changed(change)


def _each(service: Provider, edit: Callable[[Row], Any]) -> Change:
    """A change of every entry in place."""
    return _rows(service, lambda rows, request: [edit(row) or row for row in rows])


def _first(service: Provider, edit: Callable[[Row, Request], Any]) -> Change:
    """A change of the first entry in place."""

    def change(rows: list[Row], request: Request) -> list[Row]:
        edit(rows[0], request)
        return rows

    return _rows(service, change)


def _echoing(service: Provider, echo: Callable[[str], Any]) -> Change:
    """Every entry brings its text back."""

    def change(rows: list[Row], request: Request) -> list[Row]:
        texts = request.body[service.documents_key]
        return [{**row, service.echo_key: echo(texts[row["index"]])} for row in rows]

    return _rows(service, change)


def _repeat(rows: list[Row], request: Request) -> list[Row]:
    """The last entry is about the first one's document (with one entry: that entry twice)."""
    return [*(rows[:-1] or rows), {**rows[-1], "index": rows[0]["index"]}]


def _another(service: Provider, rows: list[Row], request: Request) -> Row:
    """An entry nobody asked for: of a document beyond the limit, if there is one."""
    others = set(range(_count(service, request))) - {row["index"] for row in rows}
    return {**rows[-1], "index": min(others, default=_count(service, request))}


def _count(service: Provider, request: Request) -> int:
    return len(request.body[service.documents_key])


def _with_unknown(service: Provider, body: Any) -> Any:
    """Add an unknown member to each entry and to the object around them, if there is one."""
    key = service.list_key
    rows = [{**row, "novelty": {"since": 2027}} for row in (body if key is None else body[key])]
    return rows if key is None else {"novelty": ["since", 2027], **body, key: rows}


def _without_usage(request: Request, normal: Reply) -> Reply:
    """Neither in the body nor in the headers."""
    if normal.status != 200:
        return normal
    body = normal.body
    if isinstance(body, dict):
        body = {name: body[name] for name in body if name not in ("usage", "meta")}
    return Reply(200, body)
