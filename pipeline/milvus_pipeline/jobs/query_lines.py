"""What one line of a file of queries says: a text, a JSON object, or ``id<TAB>text``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.errors import InputError
from milvus_pipeline.jobs.lines import Line
from milvus_pipeline.problems import describe, suggestion
from milvus_pipeline.records import Query

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
        raise InputError(f"{line.where}: must be two columns{empty}, id<TAB>text; has {len(columns)}")
    return Query(columns[1], id=columns[0])


def parse_jsonl(warn: Callable[[str], None]) -> Parser:
    """A parser of JSON objects that tells of each key that is not used, once."""
    unused: set[str] = set()

    def parse(line: Line, default_id: str) -> Query:
        parsed = _checked(line)
        for key in (parsed.model_extra or {}).keys() - unused - _KNOWN_AND_UNUSED:
            unused.add(key)  # said once a file, not once a line
            warn(f"{line.where}: the key {key!r} is not used{suggestion(key, _KEYS)}")
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
        raise InputError(f"{line.where}: {'; '.join(describe(error, _QueryLine))}") from error
    if parsed.text is None and parsed.vector is None:
        raise InputError(f"{line.where}: has neither `text` nor `vector`; give the query one of them")
    return parsed
