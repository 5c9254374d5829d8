"""The queries of a job, from a file of lines, JSONL or TSV, or from stdin. They are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.errors import InputError, QueryError
from milvus_pipeline.files.lines import MAX_BAD_LINES, STDIN, Line, file_in, read_lines, suffix_of
from milvus_pipeline.problems import problems_of, suggestion
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.text import count_text

_KEYS = ("_id", "id", "text", "query", "filter", "filter_params", "params", "vector")
_EXPECTED_KEYS = {"metadata"}  # every line of a BEIR queries.jsonl has it, and no stage uses it
_ID_HEADERS = {"id", "qid", "queryid", "topicid"}
_TEXT_HEADERS = {"text", "query", "querytext", "question"}


class InputFormat(StrEnum):
    """How a file of queries is read."""

    LINES = "lines"
    """One query a line; its id is its place, from 1."""
    JSONL = "jsonl"
    """One JSON object a line, with ``text`` (or ``query``) and the other fields of a query, as in BEIR."""
    TSV = "tsv"
    """``id<TAB>text``, with or without a header."""


class BadLines(StrEnum):
    """What is done about a line that is not a query."""

    REPORT = "report"
    """It becomes a failed result with its error, in its place."""
    SKIP = "skip"
    """It is left out, with a warning that gives its number."""
    FATAL = "fatal"
    """Nothing is run. A file is checked beforehand; stdin ends at its first bad line."""


class _QueryLine(BaseModel):
    """One line of a JSONL file of queries."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Annotated[str | int | None, Field(validation_alias=AliasChoices("_id", "id"))] = None
    text: Annotated[str | None, Field(validation_alias=AliasChoices("text", "query"))] = None
    vector: list[float] | None = None
    filter: str | None = None
    filter_params: dict[str, Any] = {}
    params: dict[str, Any] = {}


def _ignore(message: str) -> None:
    """Ignore a warning."""


def read_queries(
    source: str | Path,
    input_format: InputFormat | None = None,
    *,
    bad_lines: BadLines | str = BadLines.REPORT,
    warn: Callable[[str], None] = _ignore,
    first: int = 1,
) -> Iterator[Query | SearchResult]:
    """Read the queries of a file or of stdin, in their order, one at a time.

    Places are counted over all lines that are not blank, bad ones included, so that an id depends only on the file.
    Queries may have the same id. If the output cannot hold that, as a TREC run cannot, writing the second one fails.

    Args:
        source: a file, gunzipped if its name ends in ``.gz``; a folder in BEIR's layout, of which ``queries.jsonl`` is
            read; or ``-``, stdin.
        input_format: how to read it; by default ``.jsonl``, ``.json`` and ``.ndjson`` are JSONL, ``.tsv`` is TSV, other
            files and stdin are lines.
        bad_lines: what is done about a line that is not a query: "report", "skip" or "fatal"; see ``BadLines``.
        warn: called with what the user should know: keys that are not used, lines that are left out.
        first: the place of the first query, if others come before this source.

    Yields:
        Queries, each with an id: its own, else its place. A bad line that is reported is a failed result.

    Raises:
        InputError: the source cannot be read, or it has a bad line and these are fatal.
    """
    file = source_file(Path(source))
    return _read(file, input_format or input_format_of(file), BadLines(bad_lines), warn, first)


def count_queries(
    source: str | Path, input_format: InputFormat | None = None, *, bad_lines: BadLines | str = BadLines.REPORT
) -> int | None:
    """Return how many queries ``read_queries`` would read. None for stdin and pipes, which can be read only once.

    Bad lines that are reported are queries like the others, and are not looked for.

    Raises:
        InputError: the file cannot be read, or it has bad lines and they are fatal; with the first five of them.
    """
    file = source_file(Path(source))
    if file == STDIN or not file.is_file():
        return None
    input_format = input_format or input_format_of(file)
    if bad_lines == BadLines.REPORT:
        return sum(1 for _ in _query_lines(file, input_format))
    count, bad = 0, list[str]()
    for item in read_queries(file, input_format):
        if isinstance(item, Query):
            count += 1
        elif bad_lines == BadLines.FATAL and len(bad) < MAX_BAD_LINES:
            bad.append(str(item.error))
    if bad:
        bad.append("nothing was run")
        raise InputError("\n".join(bad), "fix the file, or have its bad lines skipped or reported")
    return count


def _read(
    file: Path, input_format: InputFormat, bad_lines: BadLines, warn: Callable[[str], None], first: int
) -> Iterator[Query | SearchResult]:
    if bad_lines is BadLines.FATAL:
        count_queries(file, input_format, bad_lines=bad_lines)
    expected = set(_EXPECTED_KEYS)
    skipped = 0
    for place, line in enumerate(_query_lines(file, input_format), start=first):
        try:
            query, unused = _parse(line, input_format, str(place))
        except InputError as error:
            if bad_lines is BadLines.FATAL:
                raise
            if bad_lines is BadLines.REPORT:
                failure = QueryError(error.what, error.next_step, place=error.place)
                yield SearchResult(Query("", id=_bad_line_id(line)), status="failed", error=failure)
                continue
            skipped += 1
            if skipped <= MAX_BAD_LINES:
                warn(f"{error}; the line is left out")
            continue
        for key in unused:
            if key not in expected:
                expected.add(key)  # one warning a file, not one a line
                warn(f"{line.where}: the key {key!r} is not used; {suggestion(key, _KEYS)}")
        yield query
    if skipped > MAX_BAD_LINES:
        warn(f"{file}: {count_text(skipped - MAX_BAD_LINES, 'line')} more left out")


def _query_lines(file: Path, input_format: InputFormat) -> Iterator[Line]:
    for number, line in enumerate(read_lines(file)):
        if number > 0 or input_format is not InputFormat.TSV or not _is_header(line):
            yield line


def input_format_of(file: Path) -> InputFormat:
    """Return the format that the file's name implies, with or without ``.gz``; lines by default."""
    suffix = suffix_of(file)
    if suffix in {".jsonl", ".json", ".ndjson"}:
        return InputFormat.JSONL
    return InputFormat.TSV if suffix == ".tsv" else InputFormat.LINES


def source_file(source: Path) -> Path:
    """Return the file that is meant: in a folder in BEIR's layout its ``queries.jsonl``.

    Raises:
        InputError: it is a folder without one.
    """
    return file_in(source, "queries.jsonl")


def _parse(line: Line, input_format: InputFormat, default_id: str) -> tuple[Query, Iterable[str]]:
    """Return the query of a line, and its keys that have no meaning. Raise InputError if it is not a query."""
    if input_format is InputFormat.LINES:
        return Query(line.text().strip(), id=default_id), ()
    if input_format is InputFormat.TSV:
        columns = [column.strip() for column in line.text().split("\t")]  # quotes have no meaning
        if len(columns) != 2 or not all(columns):
            found = sum(map(bool, columns))
            raise InputError(f"must be two columns, id<TAB>text, neither empty, got {found}", place=line.where)
        return Query(columns[1], id=columns[0]), ()
    try:
        parsed = _QueryLine.model_validate(line.object())
    except ValidationError as error:
        raise InputError("; ".join(map(str, problems_of(error, _QueryLine))), place=line.where) from error
    if parsed.text is None and parsed.vector is None:
        raise InputError("has neither `text` nor `vector`", "give the query one of them", place=line.where)
    query = Query(
        parsed.text or "",
        vector=parsed.vector,
        id=default_id if parsed.id is None else str(parsed.id),
        filter=parsed.filter,
        filter_params=parsed.filter_params,
        params=parsed.params,
    )
    return query, parsed.model_extra or ()


def _bad_line_id(line: Line) -> str:
    """Return an id for a line that is not a query: that of its JSON object, else one that no other line has."""
    with suppress(InputError):
        data = line.object()
        own = data.get("_id", data.get("id"))
        if isinstance(own, str | int) and not isinstance(own, bool) and own != "":
            return str(own)
    return f"line-{line.number}"


def _is_header(line: Line) -> bool:
    """Whether a line of TSV names the columns, in words that are hardly a query: ``query-id<TAB>text``."""
    columns = line.raw.decode(errors="replace").split("\t")
    names = [column.strip().lower().replace("-", "").replace("_", "") for column in columns]
    return len(names) == 2 and names[0] in _ID_HEADERS and names[1] in _TEXT_HEADERS
