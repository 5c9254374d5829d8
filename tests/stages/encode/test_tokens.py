"""Rows of token ids, against what the tokenizers of transformers give for the same texts."""

import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE, Model, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from milvus_pipeline import DeadlineError, StageError
from milvus_stages.local import tokens as _tokens
from milvus_stages.local.tokens import Row, TextTokenizer, batches
from support.checkpoints import bert_classifier, xlm_roberta_classifier

TEXTS = ["", "plum", " Where is the red plum? ", "zebra é 猫 [SEP] </s>", "jam " * 30]


def bare(model: Model) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer without special tokens."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("make", [bert_classifier, xlm_roberta_classifier])
def test_rows_are_those_of_transformers(make, tmp_path):
    """A text, or a pair, gets the ids and types that its tokenizer gives with special tokens."""
    model = make(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(model)
    mine = TextTokenizer(transformers.AutoTokenizer.from_pretrained(model))
    ids = [tokens.ids for tokens in mine.tokens(TEXTS, 1000)]
    for one, text in zip(ids, TEXTS, strict=True):
        expected = theirs(text, return_token_type_ids=True)
        assert mine.row(one) == Row(expected["input_ids"], expected["token_type_ids"])
        assert mine.row(one).ids[mine.text_start : mine.text_start + len(one)] == one
        pairs = theirs([(text, other) for other in TEXTS], return_token_type_ids=True)
        rows = [mine.pair_row(one, other) for other in ids]
        assert rows == [Row(*pair) for pair in zip(pairs["input_ids"], pairs["token_type_ids"], strict=True)]
        assert len(rows[0].ids) == len(one) + mine.pair_specials


def test_a_cut_text_keeps_its_whole_length(tmp_path):
    """The first tokens of a text are kept, and the number of all."""
    mine = TextTokenizer(transformers.AutoTokenizer.from_pretrained(bert_classifier(tmp_path / "model")))
    cut, whole = mine.tokens(["red plum jam sky", "red"], 3)
    assert (len(cut.ids), cut.length, cut.cut) == (3, 4, True)
    assert (len(whole.ids), whole.length, whole.cut) == (1, 1, False)


def test_texts_are_tokenized_in_parts(tmp_path, monkeypatch):
    """Many characters are tokenized in parts, which does not change the tokens."""
    mine = TextTokenizer(transformers.AutoTokenizer.from_pretrained(bert_classifier(tmp_path / "model")))
    at_once = mine.tokens(TEXTS, 1000)
    monkeypatch.setattr(_tokens, "_CHARACTERS_AT_ONCE", 5)
    assert mine.tokens(TEXTS, 1000) == at_once
    assert mine.tokens([], 1000) == []


def test_reading_ends_between_two_parts(tmp_path, monkeypatch):
    """The function that is called before each part may end the work."""
    mine = TextTokenizer(transformers.AutoTokenizer.from_pretrained(bert_classifier(tmp_path / "model")))
    monkeypatch.setattr(_tokens, "_CHARACTERS_AT_ONCE", 5)
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise DeadlineError("late")

    with pytest.raises(DeadlineError):
        mine.tokens(["plum"] * 9, 1000, check)
    assert len(calls) == 3


def test_a_tokenizer_without_special_tokens_works():
    """Nothing is put around the texts, and an empty one is read as padding."""
    mine = TextTokenizer(bare(WordLevel({"a": 0, "b": 1})))
    assert (mine.specials, mine.pair_specials, mine.limit) == (0, 0, None)
    assert mine.pair_row([0, 1], [1]).ids == [0, 1, 1]
    assert mine.row([]) == Row([mine.pad_id], [0])


def test_a_tokenizer_that_knows_nothing_is_refused():
    """A tokenizer that gives no token for a letter cannot read texts."""
    with pytest.raises(StageError, match="has no token for the letter 'a'"):
        TextTokenizer(bare(BPE({"o": 0}, [])))


def test_batches_hold_rows_of_similar_length():
    """Each row is in one batch, the longest come first, and rows of equal length keep their order."""
    assert list(batches([3, 9, 3, 1, 7], 2)) == [[1, 4], [0, 2], [3]]
    assert list(batches([], 2)) == []


def test_a_batch_that_fills_a_pass_takes_no_padding():
    """Rows shorter than three quarters of the longest go into another batch, unless the batch is small."""
    assert list(batches([400, 390, 300, 299, 20, 20], 8)) == [[0, 1, 2], [3, 4], [5]]
    assert list(batches([100, 90, 20, 10], 8)) == [[0, 1, 2, 3]]
