"""Judgements in the formats of TREC and BEIR: read as ir-measures reads them, with mistakes named by line."""

import gzip
from pathlib import Path

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.qrels import read_qrels

CRANFIELD = Path(__file__).parents[2] / ".." / "shared" / "data" / "cranfield"
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}
TREC = "q1 0 d1 2\nq1 0 d2 0\n\nq2\tQ0\td1\t-1\n"
BEIR = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n"


@pytest.mark.parametrize("name", ["qrels.txt", "qrels.tsv", "qrels.gz"])
@pytest.mark.parametrize(
    "content",
    [
        TREC,
        BEIR,
        f"\ufeff{BEIR}",
        BEIR.replace("\n", "\r\n"),
        f"{TREC}q1 1 d1 2\n",
        BEIR.replace("query-id", "Query_ID"),
    ],
)
def test_two_ways_of_writing(make, name, content):
    """Both formats give the same judgements, and a judgement may be repeated."""
    assert read_qrels(make(name, content)) == QRELS


def test_ids_with_blanks(make):
    """BEIR's columns are separated by tabs only."""
    path = make("qrels.tsv", "query-id\tcorpus-id\tscore\nq 1\td 1\t1\n")
    assert read_qrels(path) == {"q 1": {"d 1": 1}}


def test_a_folder_in_beirs_shape(make, tmp_path):
    """A folder in BEIR's layout is read as its test set; without one the message lists the others."""
    make("qrels/train.tsv", BEIR)
    make("qrels/dev.tsv", BEIR)
    with pytest.raises(
        InputError, match=r"is a folder without qrels/test\.tsv \(it has qrels/dev\.tsv, qrels/train\.tsv\)"
    ):
        read_qrels(tmp_path)
    make("qrels/test.tsv", BEIR)
    assert read_qrels(tmp_path) == QRELS
    with pytest.raises(InputError, match=r"is a folder without qrels/test\.tsv; give"):
        read_qrels(tmp_path / "qrels")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1 0 d1 2\nq1 d2 1\n", ":2: must have 4 columns, query-id iteration document-id grade (BEIR's 3 need their"),
        (
            "q1 0 d1 2 x\n",
            ":1: must have 4 columns, query-id iteration document-id grade (BEIR's 3 need their header, ",
        ),
        (f"{BEIR}q1\td3\n", ":5: must have 3 columns, query-id<TAB>corpus-id<TAB>score, got 2"),
        (f"{BEIR}\td3\t1\n", ":5: must have 3 columns, query-id<TAB>corpus-id<TAB>score, got 2"),
        ("q1 0 d1 1.0\n", ":1: the grade, its last column, must be a whole number"),
        ("q1 0 d1 1_0\n", ":1: the grade, its last column, must be a whole number"),
        (
            "q1 0 d1 2\n\nq1 0 d2 1\nq1 0 d1 0\n",
            ":4: grades document 'd1' 0 for query 'q1'; an earlier line grades it 2",
        ),
        (f"{BEIR}q2\td1\t1\n", ":5: grades document 'd1' 1 for query 'q2'; an earlier line grades it -1"),
        ("\n \n", ": contains no judgements; a line is `query-id iteration document-id grade`, or `query-id<TAB>"),
        ("query-id\tcorpus-id\tscore\n", ": contains no judgements"),
    ],
)
def test_mistakes_are_named_by_line(make, content, message):
    """A bad line is reported by its number with what was expected."""
    path = make("qrels.txt", content)
    with pytest.raises(InputError) as error:
        read_qrels(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_only_the_first_mistakes_are_listed(make):
    """Reading stops at the fifth mistake."""
    path = make("qrels.txt", "q1 0 d1 2\n" + "oops\n" * 3 + "q1 0 d1 1\n" * 30)
    with pytest.raises(InputError) as error:
        read_qrels(path)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{number}" for number in range(2, 7)]


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="the Cranfield collection is not on this machine")
def test_cranfield(tmp_path):
    """Cranfield's judgements are the same from BEIR's and TREC's format, and as ir-measures reads them."""
    qrels = read_qrels(CRANFIELD / "qrels.tsv")
    assert (len(qrels), sum(map(len, qrels.values()))) == (225, 1837)
    path = tmp_path / "qrels.txt"
    lines = [f"{query} 0 {document} {grade}\n" for query, graded in qrels.items() for document, grade in graded.items()]
    path.write_text("".join(lines), encoding="utf-8")
    assert read_qrels(path) == qrels == as_ir_measures_reads(path)


def as_ir_measures_reads(path):
    """Return the judgements as ir-measures reads them."""
    qrels = {}
    for judged in ir_measures.read_trec_qrels(str(path)):
        qrels.setdefault(judged.query_id, {})[judged.doc_id] = judged.relevance
    return qrels


WORDS = st.text(
    st.characters(min_codepoint=33, max_codepoint=383, exclude_characters="\x85\xa0\x7f"), min_size=1, max_size=6
)


@given(
    st.dictionaries(st.tuples(WORDS, WORDS), st.integers(-3, 10**6), min_size=1),
    st.sampled_from([" ", "\t", "   "]),
    st.booleans(),
)
def test_what_ir_measures_reads(tmp_path_factory, judged, blank, gzipped):
    """The two readers agree on every valid file."""
    text = "".join(blank.join([query, "0", document, str(grade)]) + "\n" for (query, document), grade in judged.items())
    path = tmp_path_factory.mktemp("qrels") / ("qrels.gz" if gzipped else "qrels")
    path.write_bytes(gzip.compress(text.encode()) if gzipped else text.encode())
    assert read_qrels(path) == as_ir_measures_reads(path)


@given(st.binary(max_size=60) | st.lists(st.sampled_from(["q1", "0", "d1", " ", "\t", "\n", "query-id"])).map("".join))
def test_whatever_a_file_holds(tmp_path_factory, content):
    """Any content gives judgements or an InputError, the same twice."""
    path = tmp_path_factory.mktemp("qrels") / "qrels"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(read_qrels(path))
        except InputError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    assert isinstance(outcomes[0], dict) or outcomes[0].startswith(str(path))
