"""Relevance judgements (qrels), in the formats of TREC and BEIR: how relevant a document is to a query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.lines import MAX_BAD_LINES, Line, file_in, read_lines

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""Query id, then document id, then grade: 0 is not relevant, more is more relevant; TREC has negative ones for spam."""

_BEIR_HEADER = ["queryid", "corpusid", "score"]
_TREC = "query-id iteration document-id grade"
_BEIR = "query-id<TAB>corpus-id<TAB>score"
_GRADE = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)


def read_qrels(path: str | Path) -> Qrels:
    """Read the judgements of a file: TREC qrels, or BEIR's TSV, which is recognized by its header.

    Args:
        path: a file, gunzipped if its name ends in ``.gz``; a folder in BEIR's layout, of which ``qrels/test.tsv`` is
            read; or ``-``, stdin.

    Raises:
        InputError: the file cannot be read, has lines that are not judgements, or gives a document two grades for one
            query; with the numbers of the first five such lines.
    """
    file = qrels_file(Path(path))
    qrels: dict[str, dict[str, int]] = {}
    bad: list[str] = []
    beir = False
    for number, line in enumerate(read_lines(file)):
        try:
            text = line.text()
            if number == 0 and _is_beir_header(text):
                beir = True
                continue
            query, document, grade = _judgement(line, text, beir)
            earlier = qrels.setdefault(query, {}).setdefault(document, grade)
            if earlier != grade:
                what = f"grades document {document!r} {grade} for query {query!r}; an earlier line grades it {earlier}"
                raise InputError(what, place=line.where)
        except InputError as error:
            bad.append(str(error))
            if len(bad) == MAX_BAD_LINES:
                break
    if bad:
        raise InputError("\n".join(bad))
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


def _judgement(line: Line, text: str, beir: bool) -> tuple[str, str, int]:
    columns = [column.strip() for column in text.split("\t")] if beir else text.split()
    if len(columns) != (3 if beir else 4) or not all(columns):
        expected = f"3 columns, {_BEIR}" if beir else f"4 columns, {_TREC} (BEIR's 3 need their header, {_BEIR})"
        raise InputError(f"must have {expected}, got {sum(map(bool, columns))}", place=line.where)
    query, document, grade = columns[0], columns[-2], columns[-1]
    if not _GRADE.fullmatch(grade):
        raise InputError("the grade, its last column, must be a whole number", place=line.where)
    return query, document, int(grade)


def _is_beir_header(text: str) -> bool:
    return [re.sub("[-_ ]", "", column.lower()) for column in text.strip().split("\t")] == _BEIR_HEADER
