"""Results as text: strict JSON lines, equal for equal results, and TREC runs that keep the order of the hits."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ir_measures import AP, RR, R, nDCG

from milvus_pipeline import Hit, Query, QueryError, SearchResult, StageReport
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.files.results import JsonLines, OutputError, OutputFormat, TrecRun, decreasing, format_of

MEASURES = [nDCG @ 3, nDCG, RR, AP, R @ 2]
AWKWARD = [0.0, -0.0, 0.5, 1e-9, 1e-40, -1e-45, 1e30, -1e30, 1e37, 3.5e38, -1e308, 1.17549435e-38, 16777217.0]
SCORES = st.lists(
    st.floats(allow_nan=False, width=32) | st.floats(allow_nan=False) | st.sampled_from(AWKWARD), max_size=12
)


def result_of(scores, query_id="q1"):
    """Make a result with these scores in this order; sorting by id would give another order."""
    hits = [Hit((place * 7) % 12, None, score) for place, score in enumerate(scores)]
    return SearchResult(Query("red", id=query_id), hits)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.trec", "trec"),
        ("a.run", "trec"),
        ("a.RUN", "trec"),
        ("a.jsonl", "jsonl"),
        ("a.json", "jsonl"),
        ("a", "jsonl"),
    ],
)
def test_the_file_name_gives_the_format(name, expected, suffix):
    """The suffix decides, with or without .gz, in any case."""
    assert format_of(Path("some.run") / f"{name}{suffix}") is OutputFormat(expected)


@given(SCORES)
def test_scores_strictly_decrease_in_32_bits(scores):
    """Scores as printed and read back by trec_eval strictly decrease; none is denormal or out of range."""
    printed = [np.float32(float(f"{score:.9g}")) for score in decreasing(scores)]
    assert all(np.isfinite(printed))
    assert all(before > after for before, after in pairwise(printed))
    assert all(score == 0 or abs(score) >= np.finfo(np.float32).tiny for score in printed)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), unique=True).map(lambda given: sorted(given)[::-1])
)
def test_decreasing_scores_are_left_alone(scores):
    """Only scores that would change the order are changed."""
    assert decreasing(scores) == scores


def test_a_score_that_does_not_decrease_is_moved_by_the_least():
    """It becomes the score before it less one unit in the last place; NaN counts as a tie."""
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert decreasing([0.5, 0.5, 0.25]) == pytest.approx([0.5, below, 0.25], abs=1e-7)
    assert decreasing([0.5, 0.5, 0.25])[::2] == [0.5, 0.25]
    found = decreasing([float("nan"), 0.5, float("nan"), float("inf"), float("-inf")])
    assert found[:2] == [pytest.approx(1e37), 0.5]
    assert all(before > after for before, after in pairwise(found))


@given(st.lists(SCORES, min_size=1, max_size=3), st.dictionaries(st.integers(0, 11), st.integers(0, 3), min_size=1))
@example([[0.5] * 12], {0: 1, 7: 2, 9: 3})
@example([[float("inf"), 1e30, 1e30, -1e-45, 0.0, 1e-40]], {2: 1, 9: 3})
def test_a_run_measures_as_its_order(lists, grades):
    """trec_eval's measures of the written run equal those of the order of the hits."""
    run = TrecRun("tag")
    text = "".join(run.text(result_of(scores, f"q{place}")) for place, scores in enumerate(lists))
    written = list(ir_measures.read_trec_run(f"{text}\n"))
    queries = [f"q{place}" for place in range(len(lists))]
    ideal = [
        ir_measures.ScoredDoc(query, str((place * 7) % 12), 100.0 - place)
        for query, scores in zip(queries, lists, strict=True)
        for place in range(len(scores))
    ]
    assert [(scored.query_id, scored.doc_id) for scored in written] == [(one.query_id, one.doc_id) for one in ideal]
    qrels = [ir_measures.Qrel(query, str(document), grade) for query in queries for document, grade in grades.items()]
    by_query = [
        sorted(ir_measures.pytrec_eval.iter_calc(MEASURES, qrels, scored), key=str) for scored in (written, ideal)
    ]
    assert by_query[0] == by_query[1]


def test_a_run_has_six_columns():
    """Blanks in the tag become underscores."""
    assert TrecRun(" my fruit\n").text(result_of([2.0, 1.0])) == "q1 Q0 0 1 2 my_fruit\nq1 Q0 7 2 1 my_fruit\n"
    assert TrecRun(" ").text(result_of([2.0])) == "q1 Q0 0 1 2 run\n"


def test_a_query_that_failed_or_found_nothing_has_no_line():
    """Its id stays free for a query with hits."""
    run = TrecRun("x")
    failed = SearchResult(Query("", id="q1"), status="failed", error=QueryError("is empty"))
    assert run.text(failed) == run.text(failed) == run.text(result_of([])) == ""
    assert run.text(result_of([1.0])) == "q1 Q0 0 1 1 x\n"
    with pytest.raises(OutputError, match="duplicate query id 'q1'; a TREC run needs unique ids"):
        run.text(result_of([1.0]))


def test_a_resumed_run_refuses_ids_that_it_has():
    """The queries of the lines before it count as written."""
    run = TrecRun("x")
    run.resume([b"q1 Q0 a 1 2 x\n", b"q1 Q0 b 2 1 x\n"])
    with pytest.raises(OutputError, match="duplicate query id 'q1'"):
        run.text(result_of([1.0]))
    assert run.text(result_of([1.0], "q2")) == "q2 Q0 0 1 1 x\n"


@pytest.mark.parametrize("word", ["", "b c", "b\tc", "b\n", "b\u2003c", "b\0", "b\ud800"])
def test_an_id_that_a_run_cannot_hold(word):
    """No line of the query is written unless all can be; its id stays free."""
    run = TrecRun("x")
    with pytest.raises(OutputError, match="the id of a hit must be one word without blanks in a TREC run, got '"):
        run.text(SearchResult(Query("q", id="1"), [Hit("a", "", 1.0), Hit(word, "", 0.5)]))
    with pytest.raises(OutputError, match="the query id must be one word without blanks in a TREC run, got '"):
        run.text(result_of([1.0], word))
    assert run.text(SearchResult(Query("q", id="1"), [Hit("ä", "", 1.0)])) == "1 Q0 ä 1 1 x\n"


def test_hits_of_one_id():
    """trec_eval counts a document once, so two hits of one id are refused."""
    with pytest.raises(OutputError, match="two hits have the same id"):
        TrecRun("x").text(SearchResult(Query("q", id="1"), [Hit(1, "", 1.0), Hit("1", "", 0.5)]))


def a_result(seconds=0.25):
    """Make a result with the reports of a search and a reranker."""
    details = {"usage": {"requests": 1}, "cached": 3, "cut": 2}
    reports = [
        StageReport("search", "milvus_search", seconds, 0, 1, batch_size=4),
        StageReport("bge", "bge", 0.1, 1, 1, "partial", "1 was not scored", "deadline", details=details),
    ]
    hit = Hit(7, "plüm", 0.5, {"year": 1956}).ranked("search", 0.5, 1)
    return SearchResult(Query("red", id="q1"), [hit], "partial", reports)


def test_a_line_is_the_result():
    """A result is one line with the data of `to_dict`."""
    line = JsonLines().text(a_result())
    assert line.endswith("}\n")
    assert json.loads(line) == a_result().to_dict()
    assert "plüm" in line


def test_figures_are_left_out():
    """Without figures two runs with the same results write the same lines."""
    line = JsonLines(figures=False).text(a_result(seconds=1.5))
    assert line == JsonLines(figures=False).text(a_result(seconds=2.5))
    whole, data = a_result().to_dict(), json.loads(line)
    assert data == a_result().to_dict(figures=False)
    for report, left in zip(whole["reports"], data["reports"], strict=True):
        assert report.keys() - left.keys() == {"seconds", "batch_size"}
        assert all(left[key] == value for key, value in report.items() if key in left and key != "details")
    assert data["reports"][1]["details"] == {"cut": 2}
    assert {**data, "reports": []} == {**whole, "reports": []}


def test_a_failed_result_has_a_line():
    """A failed result is written with its error."""
    failed = SearchResult(Query("", id="q1"), status="failed", error=QueryError("is empty"))
    data = json.loads(JsonLines(figures=False).text(failed))
    assert (data["status"], data["hits"], data["error"]) == ("failed", [], "is empty")


@given(st.text(st.characters() | st.sampled_from("\x85\u2028\u2029\ud800\udfff\r\n\x0b\x1c")))
def test_a_line_is_one_line(text):
    """No character of a text breaks the line for any reader; it is UTF-8 and reads back unchanged."""
    line = JsonLines().text(SearchResult(Query(text, id="1"), [Hit(1, text, 0.5, {"field": text})]))
    assert line.splitlines(keepends=True) == [line]
    data = json.loads(line.encode())
    assert data["query"]["text"] == data["hits"][0]["text"] == data["hits"][0]["fields"]["field"] == text


def test_a_line_does_not_depend_on_the_process():
    """Sets are written in a fixed order and objects without their address."""
    program = (
        "from milvus_pipeline import Query, SearchResult, StageReport\n"
        "from milvus_pipeline.files.results import JsonLines\n"
        "words = {'red', 'plum', 'sky', 'pear'}\n"
        "details = {'set': words, 'deep': [{'x': frozenset(words)}, object()]}\n"
        "report = StageReport('a', 'a', 0.0, 0, 0, details=details)\n"
        "print(JsonLines(figures=False).text(SearchResult(Query('q', id='1'), reports=[report])), end='')\n"
    )
    lines = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(lines) == 1
    (report,) = json.loads(lines.pop())["reports"]
    assert report["details"]["set"] == report["details"]["deep"][0]["x"] == ["pear", "plum", "red", "sky"]


def test_json_is_strict():
    """NaN becomes null; values that JSON has no form for become plain data or text."""
    data = {
        "nan": [float("nan"), np.float32("inf"), 1.5],
        "array": np.arange(2, dtype=np.int64),
        "number": np.float32(0.5),
        "bytes": b"x",
        7: {1},
        "text": "plüm\n",
    }
    line = json_text(data)
    assert "\n" not in line
    assert "plüm" in line
    assert json.loads(line, parse_constant=pytest.fail) == {
        "nan": [None, None, 1.5],
        "array": [0, 1],
        "number": 0.5,
        "bytes": "b'x'",
        "7": [1],
        "text": "plüm\n",
    }
