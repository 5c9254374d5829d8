"""Relevance judgements (qrels), in the formats of TREC and BEIR: how relevant a document is to a query."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.lines import BadLineList, Line, file_in, read_lines

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""Query id, then document id, then grade: 0 is not relevant, more is more relevant; TREC has negative ones for spam."""

_BEIR_HEADER = ["queryid", "corpusid", "score"]
_TREC = "query-id iteration document-id grade"
_BEIR = "query-id<TAB>corpus-id<TAB>score"
_GRADE = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)


class _Judgement(NamedTuple):
    line: Line
    query: str
    document: str
    grade: int


def read_qrels(path: str | Path) -> Qrels:
    """Read the judgements of a file: TREC qrels, or BEIR's TSV, which is recognized by its header.

    Args:
        path: a file, gunzipped if its name ends in ``.gz``; a folder in BEIR's layout, of which ``qrels/test.tsv`` is
            read; or ``-``, stdin.

    Raises:
        InputError: the file cannot be read, has lines that are not judgements, or gives a document two grades for one
            query; with the numbers of the first few lines.
    """
    file = qrels_file(Path(path))
    qrels: dict[str, dict[str, int]] = {}
    bad = BadLineList()
    for judged in _judgements(file, bad):
        graded = qrels.setdefault(judged.query, {})
        if graded.setdefault(judged.document, judged.grade) != judged.grade:
            bad.add("" if bad.full else _contradiction(file, judged, graded[judged.document]))
    if bad.count:
        raise InputError(str(bad))
    if not qrels:
        step = f"a line is `{_TREC}`, or `{_BEIR}` after a header"
        raise InputError("contains no judgements", step, place=str(file))
    return qrels


def qrels_file(path: Path) -> Path:
    """Return the file that is meant: in a folder in BEIR's layout its ``qrels/test.tsv``.

    Raises:
        InputError: it is a folder without one.
    """
    return file_in(path, "qrels/test.tsv")


def _judgements(file: Path, bad: BadLineList) -> Iterator[_Judgement]:
    beir = False
    for number, line in enumerate(read_lines(file)):
        try:
            text = line.text()
            if number == 0 and _is_beir_header(text):
                beir = True
                continue
            yield _judgement(line, text, beir)
        except InputError as error:
            bad.add(str(error))


def _judgement(line: Line, text: str, beir: bool) -> _Judgement:
    columns = [column.strip() for column in text.split("\t")] if beir else text.split()
    if len(columns) != (3 if beir else 4) or not all(columns):
        expected = f"3 columns, {_BEIR}" if beir else f"4 columns, {_TREC} (BEIR's 3 need their header, {_BEIR})"
        raise InputError(f"must have {expected}, got {sum(map(bool, columns))}", place=line.where)
    query, document, grade = columns[0], columns[-2], columns[-1]
    if not _GRADE.fullmatch(grade):
        raise InputError("the grade, its last column, must be a whole number", place=line.where)
    return _Judgement(line, query, document, int(grade))


def _is_beir_header(text: str) -> bool:
    return [re.sub("[-_ ]", "", column.lower()) for column in text.strip().split("\t")] == _BEIR_HEADER


def _contradiction(file: Path, judged: _Judgement, before: int) -> str:
    earlier = "an earlier line"
    if file.is_file():  # read it again, which stdin cannot be, rather than keep the numbers of all lines
        pair = (judged.query, judged.document)
        first = next(other for other in _judgements(file, BadLineList()) if (other.query, other.document) == pair)
        earlier = f"line {first.line.number}"
    return (
        f"{judged.line.where}: grades document {judged.document!r} {judged.grade} for query {judged.query!r}; "
        f"{earlier} grades it {before}"
    )
