"""Small checkpoints, made once, and texts of every length to score with them."""

import random

import pytest

from support.checkpoints import WORDS, bert_classifier, encoder, xlm_roberta_classifier


def words(count: int, seed: int) -> str:
    """That many words, some of which the small tokenizers have to split."""
    chosen = random.Random(seed)  # noqa: S311 - texts for tests, not secrets
    return " ".join(chosen.choice([*WORDS, "plums", "searching", "Zebra", "é"]) for _ in range(count))


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Folder of a BERT with one label."""
    return str(bert_classifier(tmp_path_factory.mktemp("models") / "bert"))


@pytest.fixture(scope="session")
def xlm_roberta(tmp_path_factory):
    """Folder of an XLM-RoBERTa with one label."""
    return str(xlm_roberta_classifier(tmp_path_factory.mktemp("models") / "xlm_roberta"))


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory):
    """Folder of an encoder."""
    return str(encoder(tmp_path_factory.mktemp("models") / "encoder"))


@pytest.fixture(scope="session")
def queries():
    """Queries from one word to more than any model reads."""
    return ["plum", "where is the red plum?", words(30, 1), words(260, 2), words(700, 3)]


@pytest.fixture(scope="session")
def documents():
    """Documents from empty to more than any model reads, and around the limits."""
    return ["", "   ", *(words(count, count) for count in (1, 2, 9, 60, 240, 400, 505, 508, 509, 510, 511, 512, 1500))]
