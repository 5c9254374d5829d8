"""Relevance judgements (qrels): which document is how relevant to which query, as TREC and BEIR write them down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.lines import BadLineList, Line, read_lines

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""Query id, then document id, then grade: 0 is not relevant, more is more so; TREC knows negative ones for spam."""

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
    """The judgements of a file: TREC qrels, or BEIR's TSV, which is known by its header.

    Args:
        path: a file, gunzipped where its name ends in ``.gz``; a folder in BEIR's shape, which stands for its
            ``qrels/test.tsv``; or ``-``, stdin.

    Raises:
        InputError: the file cannot be read, or has lines that are no judgements, or gives a document two grades for
            one query; the first few are told by their numbers.
    """
    file = qrels_file(Path(path))
    qrels: dict[str, dict[str, int]] = {}
    bad = BadLineList()
    for judged in _judgements(file, bad):
        graded = qrels.setdefault(judged.query, {})
        if graded.setdefault(judged.document, judged.grade) != judged.grade:
            bad.add("" if bad.full else _contradiction(file, judged, graded[judged.document]))
    if bad.count:
        raise InputError(f"{bad}")
    if not qrels:
        raise InputError("holds no judgements", f"a line is `{_TREC}`, or behind a header `{_BEIR}`", place=str(file))
    return qrels


def qrels_file(path: Path) -> Path:
    """The file that is meant: in place of a folder in BEIR's shape its ``qrels/test.tsv``.

    Raises:
        InputError: it is a folder without one.
    """
    if not path.is_dir():
        return path
    for name in ("test.tsv", "test.tsv.gz"):
        if (path / "qrels" / name).is_file():
            return path / "qrels" / name
    others = sorted(str(other.relative_to(path)) for other in (path / "qrels").glob("*.tsv*"))
    there = f"there are {', '.join(others)}" if others else "nor any other qrels/*.tsv"
    raise InputError(
        f"is a folder, and holds no qrels/test.tsv ({there})", "give the name of a file in it", place=str(path)
    )


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
        raise InputError(f"must have {expected}", f"has {sum(map(bool, columns))}", place=line.where)
    query, document, grade = columns[0], columns[-2], columns[-1]
    if not _GRADE.fullmatch(grade):
        raise InputError("the grade, its last column, must be a whole number", place=line.where)
    return _Judgement(line, query, document, int(grade))


def _is_beir_header(text: str) -> bool:
    return [re.sub("[-_ ]", "", column.lower()) for column in text.strip().split("\t")] == _BEIR_HEADER


def _contradiction(file: Path, judged: _Judgement, before: int) -> str:
    earlier = "an earlier line"
    if file.is_file():  # read once more, which stdin cannot be; the numbers of all lines are not worth keeping
        pair = (judged.query, judged.document)
        first = next(other for other in _judgements(file, BadLineList()) if (other.query, other.document) == pair)
        earlier = f"line {first.line.number}"
    return (
        f"{judged.line.where}: grades document {judged.document!r} {judged.grade} for query {judged.query!r}; "
        f"{earlier} grades it {before}"
    )
