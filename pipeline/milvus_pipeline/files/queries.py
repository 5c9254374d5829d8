"""The queries of a job, from a file of lines, JSONL or TSV, or from stdin: read one at a time, never all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.errors import InputError, QueryError
from milvus_pipeline.files.lines import STDIN, BadLineList, Line, read_lines, suffix_of
from milvus_pipeline.problems import problems_of, suggestion
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.text import count_text

_KEYS = ("_id", "id", "text", "query", "filter", "filter_params", "params", "vector")
_KNOWN_AND_UNUSED = {"metadata"}  # every line of a BEIR queries.jsonl carries it
_ID_HEADERS = {"id", "qid", "queryid", "topicid"}
_TEXT_HEADERS = {"text", "query", "querytext", "question"}

Parser: TypeAlias = Callable[[Line, str], Query]
"""Makes a query of a line, with the id given unless the line brings its own. InputError where it is none."""


class _QueryLine(BaseModel):
    """One line of a JSONL file of queries."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Annotated[str | int | None, Field(validation_alias=AliasChoices("_id", "id"))] = None
    text: Annotated[str | None, Field(validation_alias=AliasChoices("text", "query"))] = None
    vector: list[float] | None = None
    filter: str | None = None
    filter_params: dict[str, Any] = {}
    params: dict[str, Any] = {}


def parse_text(line: Line, default_id: str) -> Query:
    """The whole line is the text."""
    return Query(line.text().strip(), id=default_id)


def parse_tsv(line: Line, default_id: str) -> Query:
    """The text before the tab is the id, and that behind it the query's. Quotes have no meaning."""
    columns = [column.strip() for column in line.text().split("\t")]
    if len(columns) != 2 or not all(columns):
        empty = " with something in them" if len(columns) == 2 else ""
        raise InputError(f"must be two columns{empty}, id<TAB>text", f"has {len(columns)}", place=line.where)
    return Query(columns[1], id=columns[0])


def parse_jsonl(warn: Callable[[str], None]) -> Parser:
    """A parser of JSON objects that tells of each key that is not used, once."""
    unused: set[str] = set()

    def parse(line: Line, default_id: str) -> Query:
        parsed = _checked(line)
        for key in (parsed.model_extra or {}).keys() - unused - _KNOWN_AND_UNUSED:
            unused.add(key)  # said once a file, not once a line
            warn(f"{line.where}: the key {key!r} is not used; {suggestion(key, _KEYS)}")
        return Query(
            parsed.text or "",
            vector=parsed.vector,
            id=default_id if parsed.id is None else str(parsed.id),
            filter=parsed.filter,
            filter_params=parsed.filter_params,
            params=parsed.params,
        )

    return parse


def is_header(line: Line) -> bool:
    """Whether a line of TSV names the columns, in words that no query would consist of: ``query-id<TAB>text``."""
    try:
        names = [name.strip().lower().replace("-", "").replace("_", "") for name in line.text().split("\t")]
    except InputError:
        return False
    return len(names) == 2 and names[0] in _ID_HEADERS and names[1] in _TEXT_HEADERS


def own_id(line: Line, *, tsv: bool) -> str | None:
    """The id that a line of JSONL or TSV gives itself, though it is no query; None where it gives none."""
    try:
        if tsv:
            before, tab, _ = line.text().partition("\t")
            return before.strip() if tab else None
        data = line.object()
    except InputError:
        return None
    given = data.get("_id", data.get("id"))
    return str(given) if isinstance(given, str | int) and not isinstance(given, bool) else None


def _checked(line: Line) -> _QueryLine:
    try:
        parsed = _QueryLine.model_validate(line.object())
    except ValidationError as error:
        raise InputError("; ".join(map(str, problems_of(error, _QueryLine))), place=line.where) from error
    if parsed.text is None and parsed.vector is None:
        raise InputError("has neither `text` nor `vector`", "give the query one of them", place=line.where)
    return parsed


_JSONL_SUFFIXES = {".jsonl", ".json", ".ndjson"}
_BEIR_NAMES = ("queries.jsonl", "queries.jsonl.gz")


class InputFormat(StrEnum):
    """How a file of queries is read."""

    LINES = "lines"
    """A query a line; its id is its place, from 1."""
    JSONL = "jsonl"
    """A JSON object a line, with ``text`` (or ``query``) and what else a query has; BEIR's ``queries.jsonl`` is one."""
    TSV = "tsv"
    """``id<TAB>text``, with or without a header."""


class BadLines(StrEnum):
    """What is done about a line that is no query."""

    REPORT = "report"
    """It becomes a failed result with its error, in its place."""
    SKIP = "skip"
    """It is left out, and told by its number."""
    FATAL = "fatal"
    """Nothing is run. A file is looked through for them beforehand; stdin ends where the first one comes."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first pass over a file found.

    Args:
        count: number of queries that will be read of it, bad lines that are reported among them.
        bad: number of lines that are left out.
    """

    count: int
    bad: int


def _silent(message: str) -> None:
    """Tell nobody."""


class QueryReader(Iterator[Query | SearchResult]):
    """The queries of one source in their order, each with an id: its own, else its place from 1.

    Places are counted over all lines that are not blank, bad ones included, so that an id depends on nothing but the
    file. Queries may have the same id; where the output cannot hold that, as a TREC run cannot, writing the second one
    is what fails.

    Args:
        source: a file, gunzipped where its name ends in ``.gz``; a folder in BEIR's shape, which stands for its
            ``queries.jsonl``; or ``-``, stdin.
        input_format: how to read it; by default as the file's name says: ``.jsonl``, ``.json`` and ``.ndjson`` are
            JSONL, ``.tsv`` is TSV, the rest and stdin are lines.
        bad_lines: what is done about a line that is no query.
        warn: told what the user should know: keys that are not used, lines that are left out.
        first: the place of the first query, where others come before this source.

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
        warn: Callable[[str], None] = _silent,
        first: int = 1,
    ) -> None:
        self.source = source_file(Path(source))
        self.input_format = input_format or guessed_format(self.source)
        self._bad_lines = BadLines(bad_lines)
        self._warn = warn
        self._place = first - 1
        self._left_out = BadLineList()
        self._surveyed: Survey | None = None
        self._begun = False
        self._parse = self._parser()
        self._lines = self._read_lines()

    def survey(self) -> Survey | None:
        """Look through the file before the first query is read; None for stdin and pipes, which can be read only once.

        Bad lines that are reported are queries like the others, and are not looked for.

        Raises:
            InputError: the file cannot be read, or bad lines are fatal and it has some; the first few are told.
        """
        if self._surveyed is None and self.source != STDIN and self.source.is_file():
            self._surveyed = QueryReader(self.source, self.input_format, bad_lines=self._bad_lines)._survey()
        return self._surveyed

    def __next__(self) -> Query | SearchResult:
        if self._bad_lines is BadLines.FATAL and not self._begun:
            self.survey()
        self._begun = True
        for line in self._lines:
            try:
                return self._parse(line, str(self._place))
            except InputError as error:
                if self._bad_lines is BadLines.FATAL:
                    raise
                if self._bad_lines is BadLines.SKIP:
                    self._leave_out(str(error))
                    continue
                return SearchResult(Query("", id=self._id_of(line)), status="failed", error=QueryError(str(error)))
        if self._left_out.untold:
            self._warn(f"{self.source}: left out besides: {count_text(self._left_out.untold, 'line')}")
            self._left_out = BadLineList()
        raise StopIteration

    def _read_lines(self) -> Iterator[Line]:
        for number, line in enumerate(read_lines(self.source)):
            if number == 0 and self.input_format is InputFormat.TSV and is_header(line):
                continue
            self._place += 1
            yield line

    def _id_of(self, line: Line) -> str:
        """An id for a line that is no query: its own, else one that no other line has by its place."""
        if self.input_format is InputFormat.LINES:
            return str(self._place)
        return own_id(line, tsv=self.input_format is InputFormat.TSV) or f"line-{line.number}"

    def _leave_out(self, message: str) -> None:
        if not self._left_out.full:
            self._warn(f"{message}; the line is left out")
        self._left_out.add(message)

    def _survey(self) -> Survey:
        if self._bad_lines is BadLines.REPORT:
            return Survey(sum(1 for _ in self._lines), 0)
        count, bad = 0, BadLineList()
        for line in self._lines:
            try:
                self._parse(line, str(self._place))
            except InputError as error:
                bad.add(str(error))
            else:
                count += 1
        if bad.count and self._bad_lines is BadLines.FATAL:
            raise InputError(f"{bad}\nnothing was run", "mend the file, or have its bad lines skipped or reported")
        return Survey(count, bad.count)

    def _parser(self) -> Parser:
        if self.input_format is InputFormat.LINES:
            return parse_text
        return parse_tsv if self.input_format is InputFormat.TSV else parse_jsonl(lambda message: self._warn(message))


def read_queries(
    source: str | Path,
    input_format: InputFormat | None = None,
    *,
    bad_lines: BadLines | str = BadLines.REPORT,
    warn: Callable[[str], None] = _silent,
) -> Iterator[Query | SearchResult]:
    """The queries of a file or of stdin, in their order, read one at a time.

    Args:
        source: a file, gunzipped where its name ends in ``.gz``; a folder in BEIR's shape, which stands for its
            ``queries.jsonl``; or ``-``, stdin.
        input_format: how to read it; by default as the file's name says: ``.jsonl``, ``.json`` and ``.ndjson`` are
            JSONL, ``.tsv`` is TSV, the rest and stdin are lines.
        bad_lines: what is done about a line that is no query: "report", "skip" or "fatal"; see ``BadLines``.
        warn: told what the user should know: keys that are not used, lines that are left out.

    Yields:
        Queries, each with an id: its own, else its place from 1. A bad line that is reported is a failed result.

    Raises:
        InputError: the source cannot be read, or has a bad line and these are fatal.
    """
    return QueryReader(source, input_format, bad_lines=bad_lines, warn=warn)


def survey(
    source: str | Path, input_format: InputFormat | None = None, bad_lines: BadLines | str = BadLines.REPORT
) -> Survey | None:
    """Look through a file of queries without keeping any; None for stdin and pipes, which can be read only once.

    Arguments are those of ``read_queries``.

    Raises:
        InputError: the file cannot be read, or bad lines are fatal and it has some; the first few are told.
    """
    return QueryReader(source, input_format, bad_lines=bad_lines).survey()


def source_file(source: Path) -> Path:
    """The file that is meant: in place of a folder in BEIR's shape its ``queries.jsonl``.

    Raises:
        InputError: it is a folder without one.
    """
    if not source.is_dir():
        return source
    for name in _BEIR_NAMES:
        if (source / name).is_file():
            return source / name
    raise InputError("is a folder, and holds no queries.jsonl", "give the name of a file in it", place=str(source))


def guessed_format(source: Path) -> InputFormat:
    """JSONL or TSV where the file's name says so, else lines."""
    suffix = suffix_of(source)
    if suffix in _JSONL_SUFFIXES:
        return InputFormat.JSONL
    return InputFormat.TSV if suffix == ".tsv" else InputFormat.LINES
