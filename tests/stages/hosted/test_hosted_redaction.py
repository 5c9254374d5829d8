"""Secrets and texts are known in whatever spelling a service repeats them, and what is harmless is kept."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_stages.hosted.failures import Private
from milvus_stages.privacy.redaction import SECRET_LEFT_OUT, Hidden, proxy_secrets, repeats, without_secrets
from support.hosted_calls import ask, both_ways
from support.standins import Reply, StandIn

KEY = "FAKE-Ab12&Cd34/Ef56+Gh78=xy"
TEXT = "The minutes of 12 March name Ms Ann Ufford, the café's owner, as next head"


def escaped(text: str, form: str) -> str:
    """Each character as such an escape."""
    return "".join(form.format(ord(letter)) for letter in text)


def entities(text: str) -> str:
    return html.escape(text) + escaped(text, "&#{};")


SPELLINGS = {
    "plain": str,
    "upper": str.upper,
    "url": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "every character": lambda text: "".join(f"%{code:02x}" for code in text.encode()),
    "url twice": lambda text: quote(quote(text, safe=""), safe=""),
    "html": html.escape,
    "decimal": lambda text: escaped(text, "&#{};"),
    "hexadecimal": lambda text: escaped(text, "&#x{:x};"),
    "html of url": lambda text: escaped(quote(text, safe=""), "&#{};"),
    "u": lambda text: escaped(text, "\\u{:04x}"),
    "u twice": lambda text: escaped(escaped(text, "\\u{:04x}"), "\\x{:02x}"),
    "x": lambda text: "".join(f"\\x{code:02x}" for code in text.encode()),
    "json in json": lambda text: json.dumps(json.dumps(text)),
    "dashes": "-".join,
    "dots": lambda text: ".".join(text[at : at + 4] for at in range(0, len(text), 4)),
    "zero width": "\u200b".join,
    "control": "\0".join,
    "accents": "\u0301".join,
    "full width": lambda text: "".join(
        chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text
    ),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 in base64": lambda text: base64.b64encode(base64.b64encode(text.encode())).decode(),
    "hex": lambda text: text.encode().hex(),
}
OF_KEYS = SPELLINGS | {
    "reversed": lambda text: text[::-1],
    "basic user": lambda text: base64.b64encode(f"{text}:".encode()).decode(),
    "basic password": lambda text: base64.b64encode(f":{text}".encode()).decode(),
    "basic both": lambda text: base64.b64encode(f"me:{text}".encode()).decode(),
}


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


@pytest.mark.parametrize("spelling", sorted(OF_KEYS.keys() - {"base64 in base64"}))
def test_a_secret_is_known_in_any_spelling(spelling):
    """No eight of its letters are left, nor of what it is spelt with; where that cannot be, the message goes."""
    spelt = OF_KEYS[spelling](KEY)
    told = without_secrets(f"wrong key '{spelt}', try another", [KEY])
    assert told == SECRET_LEFT_OUT or (told.startswith("wrong key '") and told.endswith("', try another"))
    assert "[key]" in told or told == SECRET_LEFT_OUT
    for form in (letters(KEY), letters(spelt)):
        assert not any(form[at : at + 8] in letters(told) for at in range(len(form) - 7))


@pytest.mark.parametrize("spelling", sorted(SPELLINGS.keys() - {"accents", "base64 in base64"}))
def test_a_text_is_known_in_any_spelling(spelling):
    """Whole, and cut off in the middle."""
    spelt = SPELLINGS[spelling](TEXT)
    for echo in (spelt, spelt[: len(spelt) * 2 // 3]):
        assert repeats(f"cannot read: {echo}", ["another text", TEXT])


@given(st.sampled_from(["url", "html", "u", "x", "dashes"]), st.sampled_from(["url", "html", "u", "x", "dashes"]))
def test_spellings_of_spellings_are_known(outer, inner):
    """In any order, though nothing can be cut out of them."""
    spelt = SPELLINGS[outer](SPELLINGS[inner](KEY))
    if "dashes" in (outer, inner) and outer != inner and outer == "dashes":
        return  # dashes within an escape: nothing reads it
    told = without_secrets(f"wrong: {spelt}", [KEY])
    assert told == SECRET_LEFT_OUT or "[key]" in told


def test_what_is_no_secret_is_kept():
    """Values of fewer than four characters, the scheme that leads a key, and messages with escapes of their own."""
    message = "the Bearer token is malformed &amp; 100%25 of 3 tries \\u00e4 failed (request 1a2b3c4d5e6f7a8b9c0d)"
    secrets = ["Bearer FAKE-1234567890", "Token abcdefgh-9", "Basic bWU6RkFLRS05ODc2", "Bearer", "3", "of", ""]
    assert without_secrets(message, secrets) == message
    assert without_secrets("not FAKE-1234567890 but abcdefgh-9", secrets) == "not [key] but [key]"
    assert without_secrets("denied for me:FAKE-9876, FAKE-9876", secrets) == "denied for [key], [key]"
    assert without_secrets("key k9!zQ, K9 zq; not k9zqx", ["k9!zQ"]) == "key [key], [key]; not k9zqx"


def test_texts_of_dense_scripts_are_known():
    """Six letters of Chinese, Japanese or Korean say what fourteen of others do, and four are a text."""
    for text in ("患者张三李四确诊晚期肺癌入院", "かんじゃはたなかさんです", "환자홍길동폐암말기진단받음"):
        assert repeats(f"invalid: '{text[2:8]}'", [text])
        assert repeats(f"invalid: '{text[2:8]}'".encode("unicode-escape").decode(), [text])
        assert not repeats(f"invalid: '{text[2:7]}'", [text])
        assert repeats(f"invalid: {text[:4]}.", [text[:4]])
        assert not repeats(f"invalid: {text[:3]}.", [text[:3]])
    # Long words of scripts that take two bytes a letter are in many messages.
    assert not repeats("документация недоступна", ["вот документация"])
    assert repeats("нет: вот документация", ["вот документация"])


def test_short_texts_are_known_whole():
    """From eight characters on, punctuation counted; one without letters by its punctuation."""
    assert repeats("invalid document: 'HIV+ Bob' rejected", ["HIV+ Bob"])
    assert repeats("invalid: '+++ --- !!'", ["+++  --- !!"])
    assert not repeats("a is wrong", ["a - - - - -", "--------"])


@given(st.lists(st.text(max_size=40), max_size=5), st.text(max_size=80))
def test_what_is_prepared_finds_what_a_plain_search_finds(texts, message):
    """Any stretch of fourteen letters of a text, and none where there is none."""
    flat = [letters(text) for text in texts]
    own = letters(message)
    if message.isascii() and all(text.isascii() for text in texts):
        shared = any(own[at : at + 14] in text for text in flat for at in range(len(own) - 13))
        assert Hidden((), lambda: texts).repeated_by(message) or not shared
    for text in texts:
        if len(letters(text)) >= 14 and text.isascii():
            assert Hidden((), lambda: texts).repeated_by(f"bad: {text}")


@given(st.text("abcdefgh ", min_size=30, max_size=300), st.integers(0, 280), st.lists(st.text("xyz ", max_size=7)))
def test_a_stretch_is_found_at_any_place_among_others(text, start, others):
    """Wherever it begins in the texts; a stretch that leads from one text into the next is none."""
    hidden = Hidden((), lambda: [*others, text, *others])
    stretch = letters(text[start:])[:14]
    if len(stretch) == 14:
        assert hidden.repeated_by(f"1 {stretch} 2")
    if others and len(letters(text)) > 13:
        assert not hidden.repeated_by(f"1 {letters(text)[-13:]}{letters(others[0])} 2")


def test_texts_are_asked_for_once_and_only_when_wanted():
    """What a query has of texts is prepared for the first message, and serves all."""
    asked = []

    def texts():
        asked.append(1)
        return iter([TEXT])

    private = Private((KEY,), texts)
    assert not asked
    assert private.clean("no luck") == "no luck"
    assert private.kept(TEXT) is None
    assert private.kept(SPELLINGS["url twice"](KEY)) is None
    assert private.clean(SPELLINGS["url twice"](KEY)) == SECRET_LEFT_OUT
    assert asked == [1]
    assert KEY not in repr(private) + repr(Hidden([KEY]))


def test_passwords_of_proxies_are_secrets(monkeypatch):
    """As they stand in the environment, without their escapes, and as they are sent."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy_secrets() == ()
    monkeypatch.setenv("https_proxy", "http://me:FAKE%2Fpass@127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "other:FAKE-word@127.0.0.1:notaport")
    monkeypatch.setenv("all_proxy", "http://[bad:FAKE-last@127.0.0.1")
    packed = [base64.b64encode(text).decode() for text in (b"me:FAKE/pass", b"other:FAKE-word")]
    assert {"FAKE%2Fpass", "FAKE/pass", "FAKE-word", "FAKE-last", *packed} <= set(proxy_secrets())


@both_ways
@pytest.mark.parametrize("spelling", ["url", "u", "base64", "url twice"])
def test_a_service_may_repeat_a_key_in_any_place(way, spelling):
    """In its text, its code or the id of the request: nothing of it is told."""
    with StandIn("cohere") as server:
        spelt = SPELLINGS[spelling](server.key)
        server.always(Reply(401, {"message": f"no: {spelt}", "code": spelt, "id": spelt}))
        error = ask(way, server).error()
    told = f"{error} {vars(error)}"
    for form in (letters(spelt), letters(server.key)):
        assert not any(form[at : at + 8] in letters(told) for at in range(len(form) - 7))


@both_ways
def test_a_wait_of_many_digits_is_not_told(way):
    """It is no wait, and may be a key."""
    with StandIn("cohere") as server:
        server.always(Reply(429, {"message": "slow"}, {"retry-after": "12345678901234"}))
        error = ask(way, server).error()
        assert "slow, and asks for a wait of months; " in str(error)
        assert "12345678" not in f"{error} {vars(error)}".replace(",", "")
        server.always(Reply(429, {"message": "slow"}, {"retry-after": "7200"}))
        assert "asks for a wait of 7,200 s; " in str(ask(way, server).error())


@both_ways
def test_a_wait_that_repeats_a_secret_is_not_told(way, monkeypatch):
    """Digits may be a password."""
    monkeypatch.setenv("STANDIN_PIN", "4711")
    with StandIn("cohere") as server:
        server.always(Reply(429, {"message": "slow"}, {"retry-after": "4711"}))
        error = ask(way, server, headers={"x-pin": {"env": "STANDIN_PIN"}}).error()
    assert "slow, and asks for a wait that repeats a key, and is not told; " in str(error)
