"""`on_error: {fallback: ...}`: another stage replaces one that failed, and the result says so."""

import asyncio
import time

import pytest

from milvus_pipeline import ConfigError, Fallback, Pipeline, Reason, StageError
from support.fake_stages.basic import DOCUMENTS, Faulty, ListedSearch, NeedsOpen, Slow, WordOverlap

NESTED = """
name: papers
stages:
  - {type: listed_search}
  - type: faulty
    on_error:
      fallback:
        type: slow
        timeout: 0.05
        on_error: {fallback: {type: word_overlap, top_k: 2, on_error: skip}}
"""


def both_ways(pipeline, queries, **options):
    """The results of a blocking batch, which equal those of an event loop."""
    results = pipeline.run_batch(queries, return_errors=True, **options)
    assert asyncio.run(pipeline.arun_batch(queries, return_errors=True, **options)) == results
    return results


def test_the_fallback_does_the_work_of_the_stage_that_failed():
    """The fallback gets the hits as they were; the result is degraded, and names both stages and the reason."""
    pipeline = Pipeline([ListedSearch(), Faulty(on_error=Fallback(WordOverlap(top_k=2)))], name="papers")
    (result,) = both_ways(pipeline, ["red plum"])
    assert [hit.id for hit in result] == [1, 0]
    assert result.status == "degraded"
    assert result.error is None
    failed, stood_in = result.reports[1:]
    assert (failed.stage, failed.status, failed.fallback_for) == ("faulty", "skipped", None)
    assert (stood_in.stage, stood_in.status, stood_in.fallback_for) == ("word_overlap", "ok", "faulty")
    assert (stood_in.hits_in, stood_in.hits_out) == (4, 2)
    text = "papers: stages[1] (faulty): ZeroDivisionError: division by zero"
    assert result.reasons == [Reason("faulty", "error", text)]
    assert result.to_dict()["reasons"] == [{"stage": "faulty", "code": "error", "text": text}]


def test_only_the_queries_that_failed_go_to_the_fallback():
    """Only failed queries go to the fallback, and every query keeps its place."""
    pipeline = Pipeline([ListedSearch(), Faulty(how="word", word="sky", on_error=Fallback(WordOverlap()))])
    first, second, third = both_ways(pipeline, ["red", "blue sky", "plum"])
    assert [result.status for result in (first, second, third)] == ["ok", "degraded", "ok"]
    assert [len(result.hits) for result in (first, second, third)] == [1, 4, 1]
    assert second.hits[0].id == 2
    assert second.report("word_overlap").batch_size == 1
    assert [report.stage for report in first.reports] == ["listed_search", "faulty"]


def test_a_fallback_that_works_is_not_asked_without_need():
    """If the stage does its work, there is no report of its fallback."""
    (result,) = both_ways(Pipeline([ListedSearch(), WordOverlap(on_error=Fallback(Faulty()))]), ["red"])
    assert result.status == "ok"
    assert result.reasons == []
    assert [report.stage for report in result.reports] == ["listed_search", "word_overlap"]


def test_a_chain_goes_on_to_the_last_fallback():
    """The first fallback that succeeds ends the chain; each report names the stage that it replaced."""
    pipeline = Pipeline.from_yaml(NESTED)
    (result,) = [asyncio.run(pipeline.arun("red plum"))]
    assert [(report.stage, report.status, report.fallback_for) for report in result.reports] == [
        ("listed_search", "ok", None),
        ("faulty", "skipped", None),
        ("slow", "skipped", "faulty"),
        ("word_overlap", "ok", "slow"),
    ]
    assert [hit.id for hit in result] == [1, 0]
    assert [reason.code for reason in result.reasons] == ["error", "deadline"]


@pytest.mark.parametrize(("last", "status"), [("skip", "degraded"), ("raise", "failed")])
def test_the_last_of_a_chain_says_what_its_own_failure_does(last, status):
    """If the last fallback fails, the hits stay as they were, or the query fails with its error."""
    chain = Faulty(name="second", on_error=last)
    pipeline = Pipeline([ListedSearch(), Faulty(on_error=Fallback(chain)), WordOverlap()], name="papers")
    (result,) = both_ways(pipeline, ["red plum"])
    assert result.status == status
    where = "papers: stages[1].on_error.fallback (second): "
    assert result.reports[2].reason.startswith(where)
    if last == "skip":
        assert [hit.id for hit in result] == [1, 0, 2, 3]
    else:
        assert result.hits == []
        assert str(result.error).startswith(where)
        with pytest.raises(StageError, match="division by zero"):
            pipeline.run("red plum")


def test_the_fallback_has_what_is_left_of_the_time():
    """A stage's own timeout leaves time for its fallback; the deadline of the query holds for both."""
    late = Slow(seconds=0.3, timeout=0.05, on_error=Fallback(WordOverlap(on_error="skip")))
    pipeline = Pipeline([ListedSearch(), late])
    began = time.perf_counter()
    result = asyncio.run(pipeline.arun("red", timeout=20))
    assert [reason.code for reason in result.reasons] == ["deadline"]
    assert result.report("word_overlap").status == "ok"
    result = asyncio.run(pipeline.arun("red", timeout=0.02))
    assert [reason.code for reason in result.reasons] == ["deadline", "deadline"]
    assert result.report("word_overlap").status == "skipped"
    assert time.perf_counter() - began < 15


def test_what_is_partial_and_what_is_degraded_together():
    """The worst of the stages is the status, and each has its reason."""

    class Half(WordOverlap):
        """A stage that does half of its work."""

        def score_batch(self, jobs, context):
            """Report half of the hits as unscored."""
            context.partial(0, "2 of 4 documents were not scored in the time given")
            return [[1.0, 2.0, None, None] for _ in jobs]

    half = Half(name="half")
    (result,) = both_ways(Pipeline([ListedSearch(), half]), ["red"])
    assert (result.status, [hit.id for hit in result]) == ("partial", [1, 0, 2, 3])
    assert result.degraded
    assert result.reasons == [Reason("half", "deadline", "2 of 4 documents were not scored in the time given")]
    (result,) = both_ways(Pipeline([ListedSearch(), half, Faulty(on_error="skip")]), ["red"])
    assert (result.status, [reason.code for reason in result.reasons]) == ("degraded", ["deadline", "error"])
    (result,) = both_ways(Pipeline([ListedSearch(), Faulty(on_error="skip"), half]), ["red"])
    assert result.status == "degraded"


def test_fallbacks_open_and_close_with_the_pipeline():
    """Fallbacks open and close with the pipeline, so that faults show at the start."""
    spare = NeedsOpen(on_error=Fallback(WordOverlap()))
    stage = Faulty(on_error=Fallback(spare))
    pipeline = Pipeline([ListedSearch(), stage])
    with pipeline:
        assert all(member.is_open for member in stage.family())
        assert pipeline.run("red").report("needs_open").status == "ok"
    assert not any(member.is_open for member in stage.family())
    assert pipeline.stage("word_overlap") is spare.fallback
    broken = Pipeline([ListedSearch(), NeedsOpen(on_error=Fallback(Faulty(how="setup")))], name="papers")
    with pytest.raises(StageError, match=r"^papers: stages\[1\]\.on_error\.fallback \(faulty\): cannot be opened"):
        broken.open()
    assert not broken.stages[1].is_open


def test_yaml_and_python_say_the_same():
    """A chain of fallbacks is nested in YAML, and survives a round trip."""
    pipeline = Pipeline(
        [
            ListedSearch(),
            Faulty(
                on_error={
                    "fallback": Slow(timeout=0.05, on_error=Fallback(WordOverlap(top_k=2, on_error="skip"))),
                }
            ),
        ],
        name="papers",
    )
    assert Pipeline.from_yaml(NESTED) == pipeline
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
    assert Pipeline.from_config(pipeline.to_config()) == pipeline
    assert pipeline != Pipeline([ListedSearch(), Faulty(on_error="skip")], name="papers")


@pytest.mark.parametrize(
    ("on_error", "said"),
    [
        ("{fallback: {type: wrd_overlap}}", "on_error.fallback.type: no stage is named 'wrd_overlap'; did you mean"),
        ("{fallback: {type: word_overlap, topk: 3}}", "on_error.fallback.topk: unknown key; did you mean 'top_k'?"),
        ("{fallback: word_overlap}", "on_error.fallback: must be a mapping with a `type`"),
        ("{fallback: {type: word_overlap, on_error: {fallback: {top_k: 1}}}}", "on_error.fallback.on_error.fallback: "),
        ("{falback: {type: word_overlap}}", "on_error: must be 'raise', 'skip' or {fallback: STAGE}, got a mapping"),
        ("{fallback: {type: faulty}}", "on_error.fallback.name: 'faulty' is also the name of stages[1]; give one"),
    ],
)
def test_what_is_wrong_with_a_fallback_has_its_place(on_error, said):
    """Errors in a fallback have place, line and next step."""
    with pytest.raises(ConfigError) as caught:
        Pipeline.from_yaml(f"stages:\n  - type: listed_search\n  - type: faulty\n    on_error: {on_error}\n")
    assert f"stages[1].{said}" in str(caught.value)
    assert "(line 4)" in str(caught.value)


def test_a_fallback_gives_what_its_stage_gives():
    """A fallback must give what its stage gives, and get what it needs."""
    with pytest.raises(ConfigError) as caught:
        Pipeline([ListedSearch(on_error=Fallback(Slow())), WordOverlap()])
    assert str(caught.value) == (
        "stages[0].on_error.fallback: slow cannot replace listed_search, since it does not give 'hits' and 'text'"
    )
    with pytest.raises(ConfigError, match=r"stages\[0\]\.on_error\.fallback: word_overlap needs 'hits'"):
        Pipeline([Slow(on_error=Fallback(WordOverlap()))])
    with pytest.raises(ConfigError, match=r"on_error\.fallback: must be a stage, got a string"):
        Slow(on_error=Fallback("bge"))


class Retrieval(ListedSearch):
    """Retrieval whose server is unreachable."""

    type = "retrieval_away"

    def process(self, results, context):
        """Fail."""
        raise ConnectionRefusedError("nobody listens")


def test_retrieval_may_have_a_fallback():
    """Retrieval may have a fallback, for example a second collection; a lost connection is `unavailable`."""
    spare = ListedSearch(name="spare", documents=DOCUMENTS[:2])
    (result,) = both_ways(Pipeline([Retrieval(on_error=Fallback(spare)), WordOverlap()]), ["red plum"])
    assert [hit.id for hit in result] == [1, 0]
    assert result.status == "degraded"
    assert [reason.code for reason in result.reasons] == ["unavailable"]
