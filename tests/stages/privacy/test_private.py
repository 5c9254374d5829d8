"""Keys and texts are found in foreign messages however they are encoded, and harmless messages are kept."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_stages.privacy.redaction import Private, chain_is_clean, proxy_secrets

KEY = "FAKE-Ab12&Cd34/Ef56+Gh78=xy"
TEXT = "The minutes of 12 March name Ms Ann Ufford, the café's owner, as next head"

ENCODINGS = {
    "plain": str,
    "upper": str.upper,
    "broken": lambda text: text.replace(" ", "\n\t"),
    "dashes": "-".join,
    "url": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "every byte": lambda text: "".join(f"%{code:02x}" for code in text.encode()),
    "html": html.escape,
    "entities": lambda text: "".join(f"&#{ord(letter)};" for letter in text),
    "json": json.dumps,
    "unicode": lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "basic": lambda text: base64.b64encode(f"me:{text}".encode()).decode(),
}


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_keys_and_texts_are_found_in_each_encoding(encoding):
    """A message that holds one, whole or cut off, is left out, and it is neither a code nor the cause of an error."""
    for secrets, texts in (((KEY,), ()), ((), ("another text", TEXT))):
        private = Private(secrets, lambda texts=texts: texts)
        encoded = ENCODINGS[encoding](KEY if secrets else TEXT)
        for echo in (encoded, encoded[: len(encoded) * 2 // 3]):
            assert private.clean(f"cannot read: {echo}") == ""
            assert private.token(echo) is None
            assert not chain_is_clean(ValueError(echo), private)


def test_pieces_of_a_key():
    """Eight letters or digits in a row give a key away, and a key of four to seven is found whole."""
    private = Private(["abcd-1234-EFGH-5678", "k9!zQ", "4711"])
    for message in ("no 34-efgh-56", "NO ABCD 1234", "key K9!ZQ", "pin 4711"):
        assert private.clean(message) == ""
    assert private.clean("no abcd-123, k9!z, 471") == "no abcd-123, k9!z, 471"


def test_harmless_messages_are_kept():
    """Values of fewer than four characters and the scheme before a key are not keys; escapes do not matter."""
    message = "the Bearer token is malformed &amp; 100%25 of 3 tries \\u00e4 failed (request 1a2b3c4d5e6f7a8b9c0d)"
    secrets = ["Bearer FAKE-1234567890", "Token abcdefgh-9", "Basic bWU6RkFLRS05ODc2", "Bearer", "3", "of", ""]
    private = Private(secrets, lambda: ["", " ", "token", "long enough to be found"])
    assert private.clean(message) == message
    for key in ("FAKE-1234567890", "abcdefgh-9", "FAKE-9876", "me:FAKE-9876"):
        assert private.clean(f"not {key}") == ""


def test_pieces_of_a_text():
    """Fourteen bytes of letters and digits in a row are a piece of a text; one of eight to thirteen is found whole."""
    river = Private((), lambda: ["of the longest river is said", "red apples"])
    assert river.clean("the longest river is the Nile") == ""
    assert river.clean("bad: RED  APPLES!") == ""
    for message in ("the longest lake", "bad: red apple", ""):
        assert river.clean(message) == message
    for text in ("患者张三李四确诊晚期肺癌入院", "かんじゃはたなかさんです", "환자홍길동폐암말기진단받음"):
        private = Private((), lambda text=text: [text])
        assert private.clean(f"invalid: '{text[2:8]}'") == ""
        assert private.clean(f"invalid: '{text[2:8]}'".encode("unicode-escape").decode()) == ""
        assert private.clean(f"invalid: '{text[2:6]}'") != ""


@given(st.text("abcdefgh ", min_size=30, max_size=300), st.integers(0, 280), st.lists(st.text("xyz ", max_size=7)))
def test_a_piece_is_found_at_any_place_among_others(text, start, others):
    """It may begin anywhere in the texts and in the message; a piece across two texts does not count."""
    private = Private((), lambda: [*others, text, *others])
    piece = letters(text[start:])[:14]
    if len(piece) == 14:
        assert private.clean(f"1 {piece} 2") == private.clean(f"12345{piece}") == ""
    if others and len(letters(text)) > 13:
        assert private.clean(f"1 {letters(text)[-13:]}{letters(others[0])} 2") != ""


@given(st.text(), st.lists(st.text(max_size=12), max_size=4))
def test_any_message_can_be_checked(message, secrets):
    """Whatever the characters, nothing fails, and what is kept is one line of printable text."""
    kept = Private(secrets, lambda: secrets).clean(message)
    assert kept.isprintable() and len(kept) <= 300


@pytest.mark.parametrize("code", ["rate_limit", "AUTH_INVALID-key.2", "a" * 64])
def test_codes_and_identifiers_are_kept(code):
    """Up to 64 letters, digits, dots, dashes and underscores."""
    assert Private([KEY], lambda: [TEXT]).token(code) == code


@pytest.mark.parametrize("value", ["two words", "a" * 65, "", "a:b", "é", None, "minutes_of_12_march", "ab12cd34ef"])
def test_anything_else_is_not_a_code(value):
    """Text with blanks or signs, a value of another type, a piece of a text or of a key."""
    assert Private([KEY], lambda: [TEXT]).token(value) is None


def test_texts_are_read_once_and_only_when_needed():
    """They are prepared at the first message, for all; if a query has many megabytes, no free text is kept."""
    calls = []

    def texts():
        calls.append(1)
        return iter([TEXT])

    private = Private((KEY,), texts)
    assert not calls
    assert private.clean("no luck") == "no luck"
    assert private.clean(TEXT) == ""
    assert calls == [1]
    assert KEY not in repr(private)
    assert Private((), lambda: ["abcdefgh" * 2**20]).clean("no luck") == ""


def test_causes_notes_and_groups_are_checked():
    """A traceback prints them all; an error that cannot be printed counts as unclean."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise TypeError

    private = Private([KEY], lambda: [TEXT])
    noted, caused = ValueError("x"), ValueError("x")
    noted.add_note(TEXT)
    caused.__cause__ = KeyError(KEY)
    unclean = [noted, caused, ExceptionGroup("g", [ValueError("y"), noted]), MuteError(), ValueError("x" * 9000)]
    assert not any(chain_is_clean(error, private) for error in unclean)
    circle = ValueError("x")
    circle.__cause__ = circle
    assert chain_is_clean(circle, private)


def test_passwords_of_proxies_are_secrets(monkeypatch):
    """As they are written in the environment, without their escapes, and as they are sent."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy_secrets() == ()
    monkeypatch.setenv("https_proxy", "http://me:FAKE%2Fpass@127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "other:FAKE-word@127.0.0.1:notaport")
    monkeypatch.setenv("all_proxy", "http://[bad:FAKE-last@127.0.0.1")
    packed = [base64.b64encode(text).decode() for text in (b"me:FAKE/pass", b"other:FAKE-word")]
    assert {"FAKE%2Fpass", "FAKE/pass", "FAKE-word", "FAKE-last", *packed} <= set(proxy_secrets())
