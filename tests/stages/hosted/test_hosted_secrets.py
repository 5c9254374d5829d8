"""Pieces of secrets and of texts are found in messages, however they are set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from milvus_stages.privacy.redaction import SECRET_LEFT_OUT, repeats, without_secrets

WORDS = st.text("abcdefghij 0123", min_size=20, max_size=60).map(lambda text: " ".join(text.split()))


def test_pieces_of_a_secret_are_found():
    """Eight characters in a row give it away, in upper or lower case, with blanks among them; fewer do not."""
    secret = "abcd-1234-EFGH-5678"  # noqa: S105 - obviously false
    assert without_secrets(f"no {secret}!", [secret]) == "no [key]!"
    assert without_secrets(f"no {secret[3:12]}...", [secret]) == "no [key]..."
    assert without_secrets(f"no {secret.upper()} or {secret.lower()}", [secret]) == "no [key] or [key]"
    assert without_secrets("no abcd-1234\n-EFGH -5678.", [secret]) == "no [key]."
    assert without_secrets("no abcd-12", [secret]) == "no abcd-12"
    assert without_secrets("key abcd, or abc", ["abcd", "abc", ""]) == "key [key], or abc"


def test_pieces_of_a_text_are_found():
    """The whole of a text of eight characters, or sixteen of a longer one; not what any message may hold."""
    assert repeats("bad: RED  APPLES!", ["red apples"])
    assert repeats("bad: redapples!", ["red apples"])
    assert repeats("the longest river is the Nile", ["of the longest river is said"])
    assert not repeats("the longest lake", ["of the longest river is said"])
    assert not repeats("bad: apple", ["apple"])
    assert not repeats("", ["", " ", "long enough to be found"])


@given(st.text(), st.lists(st.text(max_size=12), max_size=4))
def test_any_message_may_be_searched(message, secrets):
    """Whatever the characters, nothing fails, and what is private is gone."""
    cleaned = without_secrets(message, secrets)
    repeats(message, secrets)
    assert cleaned in (message, SECRET_LEFT_OUT) or "[key]" in cleaned


@given(WORDS, st.text("xyz ", max_size=20), st.integers(0, 40), st.integers(14, 30))
def test_a_stretch_of_a_text_is_found_wherever_it_stands(text, around, start, size):
    """Fourteen letters or digits in a row are enough."""
    stretch = text[start : start + size]
    if sum(letter.isalnum() for letter in stretch) >= 14:
        assert repeats(around + stretch + around, ["another", text])
