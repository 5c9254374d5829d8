"""The queries of a job, from a file of lines, JSONL or TSV, or from stdin. They are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.errors import InputError, QueryError
from milvus_pipeline.files.lines import STDIN, BadLineList, Line, file_in, read_lines, suffix_of
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


_FORMATS = {
    ".jsonl": InputFormat.JSONL,
    ".json": InputFormat.JSONL,
    ".ndjson": InputFormat.JSONL,
    ".tsv": InputFormat.TSV,
}


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
    """Warn nobody."""


class QueryReader(Iterator[Query | SearchResult]):
    """Reads the queries of one source; see ``read_queries``.

    Places are counted over all lines that are not blank, bad ones included, so that an id depends only on the file.
    Queries may have the same id. If the output cannot hold that, as a TREC run cannot, writing the second one fails.

    Args:
        source: as for ``read_queries``, and so are the other arguments.
        input_format: how to read it.
        bad_lines: what is done about a line that is not a query.
        warn: called with what the user should know.
        first: the place of the first query, if others come before this source.

    Attributes:
        source: the file that is read.
        input_format: how it is read.
    """

    def __init__(
        self,
        source: str | Path,
        input_format: InputFormat | None = None,
        *,
        bad_lines: BadLines | str = BadLines.REPORT,
        warn: Callable[[str], None] = _ignore,
        first: int = 1,
    ) -> None:
        self.source = source_file(Path(source))
        self.input_format = input_format or _FORMATS.get(suffix_of(self.source), InputFormat.LINES)
        self._bad_lines = BadLines(bad_lines)
        self._warn = warn
        self._place = first - 1
        self._left_out = BadLineList()
        self._unused_keys: set[str] = set(_EXPECTED_KEYS)
        self._count: int | None = None
        self._started = False
        self._parse = {
            InputFormat.LINES: lambda line, default_id: Query(line.text().strip(), id=default_id),
            InputFormat.TSV: _parse_tsv,
            InputFormat.JSONL: self._parse_json,
        }[self.input_format]
        self._lines = self._read_lines()

    def count(self) -> int | None:
        """Return how many queries will be read. None for stdin and pipes, which can be read only once.

        Bad lines that are reported are queries like the others, and are not looked for.

        Raises:
            InputError: the file cannot be read, or it has bad lines and they are fatal; with the first few of them.
        """
        if self._count is None and self.source != STDIN and self.source.is_file():
            self._count = QueryReader(self.source, self.input_format, bad_lines=self._bad_lines)._count_all()
        return self._count

    def __next__(self) -> Query | SearchResult:
        if self._bad_lines is BadLines.FATAL and not self._started:
            self.count()
        self._started = True
        for line in self._lines:
            try:
                return self._parse(line, str(self._place))
            except InputError as error:
                if self._bad_lines is BadLines.FATAL:
                    raise
                if self._bad_lines is BadLines.SKIP:
                    if not self._left_out.full:
                        self._warn(f"{error}; the line is left out")
                    self._left_out.add(str(error))
                    continue
                failure = QueryError(error.what, error.next_step, place=error.place)
                return SearchResult(Query("", id=self._id_of(line)), status="failed", error=failure)
        if self._left_out.unlisted:
            self._warn(f"{self.source}: {count_text(self._left_out.unlisted, 'line')} more left out")
            self._left_out = BadLineList()
        raise StopIteration

    def _read_lines(self) -> Iterator[Line]:
        for number, line in enumerate(read_lines(self.source)):
            if number == 0 and self.input_format is InputFormat.TSV and _is_header(line):
                continue
            self._place += 1
            yield line

    def _parse_json(self, line: Line, default_id: str) -> Query:
        try:
            parsed = _QueryLine.model_validate(line.object())
        except ValidationError as error:
            raise InputError("; ".join(map(str, problems_of(error, _QueryLine))), place=line.where) from error
        if parsed.text is None and parsed.vector is None:
            raise InputError("has neither `text` nor `vector`", "give the query one of them", place=line.where)
        for key in (parsed.model_extra or {}).keys() - self._unused_keys:
            self._unused_keys.add(key)  # one warning a file, not one a line
            self._warn(f"{line.where}: the key {key!r} is not used; {suggestion(key, _KEYS)}")
        return Query(
            parsed.text or "",
            vector=parsed.vector,
            id=default_id if parsed.id is None else str(parsed.id),
            filter=parsed.filter,
            filter_params=parsed.filter_params,
            params=parsed.params,
        )

    def _id_of(self, line: Line) -> str:
        """Return an id for a line that is not a query: its own, else one that no other line has by its place."""
        if self.input_format is InputFormat.LINES:
            return str(self._place)
        other = f"line-{line.number}"
        try:
            if self.input_format is InputFormat.TSV:
                before, tab, _ = line.text().partition("\t")
                return (before.strip() if tab else "") or other
            data = line.object()
        except InputError:
            return other
        own = data.get("_id", data.get("id"))
        return str(own) if isinstance(own, str | int) and not isinstance(own, bool) and own != "" else other

    def _count_all(self) -> int:
        if self._bad_lines is BadLines.REPORT:
            return sum(1 for _ in self._lines)
        count, bad = 0, BadLineList()
        for line in self._lines:
            try:
                self._parse(line, str(self._place))
            except InputError as error:
                bad.add(str(error))
            else:
                count += 1
        if bad.count and self._bad_lines is BadLines.FATAL:
            raise InputError(f"{bad}\nnothing was run", "fix the file, or have its bad lines skipped or reported")
        return count


def read_queries(
    source: str | Path,
    input_format: InputFormat | None = None,
    *,
    bad_lines: BadLines | str = BadLines.REPORT,
    warn: Callable[[str], None] = _ignore,
) -> Iterator[Query | SearchResult]:
    """Read the queries of a file or of stdin, in their order, one at a time.

    Args:
        source: a file, gunzipped if its name ends in ``.gz``; a folder in BEIR's layout, of which ``queries.jsonl`` is
            read; or ``-``, stdin.
        input_format: how to read it; by default ``.jsonl``, ``.json`` and ``.ndjson`` are JSONL, ``.tsv`` is TSV, other
            files and stdin are lines.
        bad_lines: what is done about a line that is not a query: "report", "skip" or "fatal"; see ``BadLines``.
        warn: called with what the user should know: keys that are not used, lines that are left out.

    Yields:
        Queries, each with an id: its own, else its place from 1. A bad line that is reported is a failed result.

    Raises:
        InputError: the source cannot be read, or it has a bad line and these are fatal.
    """
    return QueryReader(source, input_format, bad_lines=bad_lines, warn=warn)


def source_file(source: Path) -> Path:
    """Return the file that is meant: in a folder in BEIR's layout its ``queries.jsonl``.

    Raises:
        InputError: it is a folder without one.
    """
    return file_in(source, "queries.jsonl")


def _parse_tsv(line: Line, default_id: str) -> Query:
    """Make a query of a line: id, tab, text. Quotes have no meaning."""
    columns = [column.strip() for column in line.text().split("\t")]
    if len(columns) != 2:
        raise InputError(f"must be two columns, id<TAB>text, got {len(columns)}", place=line.where)
    if not all(columns):
        raise InputError("must be two columns, id<TAB>text, neither of them empty", place=line.where)
    return Query(columns[1], id=columns[0])


def _is_header(line: Line) -> bool:
    """Whether a line of TSV names the columns, in words that are hardly a query: ``query-id<TAB>text``."""
    try:
        names = [name.strip().lower().replace("-", "").replace("_", "") for name in line.text().split("\t")]
    except InputError:
        return False
    return len(names) == 2 and names[0] in _ID_HEADERS and names[1] in _TEXT_HEADERS
