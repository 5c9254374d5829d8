"""The queries of a job: from a file of lines, JSONL, or stdin. Read lazily, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.errors import QueryError
from milvus_pipeline.jobs.lines import InputError, Line, read_lines
from milvus_pipeline.problems import describe, suggestion
from milvus_pipeline.records import Query, SearchResult

_JSONL_SUFFIXES = {".jsonl", ".json", ".ndjson"}
_KEYS = ("_id", "id", "text", "query", "filter", "filter_params", "params", "vector")
_KNOWN_AND_UNUSED = {"metadata"}  # every line of a BEIR queries.jsonl carries it


class InputFormat(StrEnum):
    """How a file of queries is read."""

    LINES = "lines"
    JSONL = "jsonl"


class _QueryLine(BaseModel):
    """One line of a JSONL file of queries."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Annotated[str | int | None, Field(validation_alias=AliasChoices("_id", "id"))] = None
    text: Annotated[str | None, Field(validation_alias=AliasChoices("text", "query"))] = None
    vector: list[float] | None = None
    filter: str | None = None
    filter_params: dict[str, Any] = {}
    params: dict[str, Any] = {}


def read_queries(
    texts: Sequence[str], source: Path | None, input_format: InputFormat | None, warn: Callable[[str], None]
) -> Iterator[Query | SearchResult]:
    """The given texts, then the queries of ``source``; each has an id, its place from 1 unless it brings its own.

    A line that is no query comes as a failed result, so that it does not spoil the others. In JSONL, where other lines
    may have any id, it keeps its own, or is ``line-7`` by its number in the file.

    Raises:
        InputError: the source cannot be read.
    """
    for place, text in enumerate(texts, start=1):
        yield Query(text, id=str(place))
    if source is None:
        return
    chosen = input_format or guessed_format(source)
    read = _parser(chosen, warn)
    for place, line in enumerate(read_lines(source), start=len(texts) + 1):
        try:
            yield read(line, str(place))
        except InputError as error:
            query_id = str(place) if chosen is InputFormat.LINES else _own_id(line) or f"line-{line.number}"
            yield SearchResult(Query("", id=query_id), status="failed", error=QueryError(str(error)))


def guessed_format(source: Path) -> InputFormat:
    """JSONL where the file's name says so, else lines."""
    suffix = source.with_suffix("").suffix if source.suffix == ".gz" else source.suffix
    return InputFormat.JSONL if suffix in _JSONL_SUFFIXES else InputFormat.LINES


def _parser(input_format: InputFormat, warn: Callable[[str], None]) -> Callable[[Line, str], Query]:
    if input_format is InputFormat.LINES:
        return lambda line, default_id: Query(line.text().strip(), id=default_id)
    unused: set[str] = set()

    def read(line: Line, default_id: str) -> Query:
        parsed = _checked(line)
        for key in (parsed.model_extra or {}).keys() - unused - _KNOWN_AND_UNUSED:
            unused.add(key)  # said once a file, not once a line
            warn(f"{line.where}: the key {key!r} is not used{suggestion(key, _KEYS)}")
        query_id = default_id if parsed.id is None else str(parsed.id)
        return Query(
            parsed.text or "",
            vector=parsed.vector,
            id=query_id,
            filter=parsed.filter,
            filter_params=parsed.filter_params,
            params=parsed.params,
        )

    return read


def _own_id(line: Line) -> str | None:
    """The id that a line gives itself, though it is no query; None where it gives none."""
    try:
        data = line.object()
    except InputError:
        return None
    given = data.get("_id", data.get("id"))
    return str(given) if isinstance(given, str | int) and not isinstance(given, bool) else None


def _checked(line: Line) -> _QueryLine:
    try:
        parsed = _QueryLine.model_validate(line.object())
    except ValidationError as error:
        raise InputError(f"{line.where}: {'; '.join(describe(error, _QueryLine))}") from error
    if parsed.text is None and parsed.vector is None:
        raise InputError(f"{line.where}: has neither `text` nor `vector`; give the query one of them")
    return parsed
