"""What errors say: status, code, id, text and the next step; and what they never say."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import traceback
from contextlib import contextmanager

import pytest

from milvus_pipeline import Pipeline, ServiceError
from milvus_pipeline.plugin import PASSING_STATUSES
from support.fake_stages.basic import ListedSearch
from support.hosted import KEY_VARIABLE, ask, both_ways, each_provider, keyed, opened, stage
from support.standins import Reply, StandIn, errors

DOCUMENT = "The Board met in secret on 12 March\nand chose Ms Ann Ufford as its next head, unseen by the press."
SHORT = "Ann Ufford"
ASKED = "who is to be the next head of the firm?"
ACCEPTED = "what the service accepts"
KEY = "FAKE-cohere-key-no-secret-0123456789"


def shapes(text: str) -> dict[str, Reply]:
    """A text in every place of a body from which a message may be taken."""
    page = f"<html><head><title>{text}</title></head><body>{text}</body></html>"
    return {
        "message": Reply(400, {"message": text}),
        "detail": Reply(400, {"detail": text}),
        "error": Reply(400, {"error": text, "error_type": text}),
        "nested": Reply(400, {"error": {"message": text, "type": text, "code": text}, "request_id": text}),
        "list": Reply(422, {"detail": [{"loc": ["body", text], "msg": text, "input": text, "type": text}]}),
        "errors": Reply(422, {"errors": [{"field": text, "message": text, "input": text}]}),
        "code": Reply(400, {"code": text, "id": text}, {"x-debug-trace-id": "trace-1"}),
        "string": Reply(400, text),
        "plain": Reply(400, text.encode()),
        "escaped": Reply(400, b"bad request: " + json.dumps({"documents": [text]}).encode()),
        "repr": Reply(400, {"message": f"bad request: {[text]!r}"}),
        "html": Reply(400, page.encode(), {"content-type": "text/html"}),
        "led": Reply(400, {"message": "the request was refused, since " + text}),
        "warnings": Reply(200, {"results": [], "meta": {"warnings": [text]}}),
        "index": Reply(200, {"results": [{"index": text, "relevance_score": text}]}),
    }


def disguised(text: str) -> dict[str, str]:
    """The text, whole and in parts, as services may repeat it."""
    middle = text[len(text) // 4 : -len(text) // 4]
    return {
        "whole": text,
        "beginning": text[: 2 * len(text) // 3],
        "middle": middle,
        "upper": text.upper(),
        "lower": middle.lower(),
        "spaced": "  ".join(text.split()),
        "broken": text.replace(" ", "\n\t"),
        "squeezed": "".join(text.split()),
        "dotted": f"{text[: len(text) // 2]}...",
    }


def pieces(text: str, size: int) -> set[str]:
    """Every run of ``size`` letters and digits of a text, in lower case."""
    flat = flattened(text)
    return {flat[at : at + size] for at in range(len(flat) - size + 1)}


def flattened(text: str) -> str:
    """Letters and digits only, in lower case."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def said(error: BaseException) -> str:
    """All that an error and those behind it say, in every form that they may be printed in."""
    texts = ["".join(traceback.format_exception(error))]
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        texts += [str(one), repr(one), repr(vars(one)), *map(str, one.args), *getattr(one, "__notes__", ())]
        waiting += [one.__cause__, one.__context__]
    return "\n".join(texts)


def assert_unsaid(where: str, text: str, size: int) -> None:
    """No run of ``size`` letters of the text is there."""
    # Source lines in tracebacks, and the names of files, are not what is looked at.
    lines = [line for line in where.splitlines() if not line.lstrip().startswith(("File ", "^"))]
    flat = flattened("\n".join(lines))
    found = [piece for piece in pieces(text, size) if piece in flat]
    assert not found, found[:3]


HALVED = {
    ("tei", "413_too_large"),
    ("tei", "413_validation_of_1_8"),
    ("tei", "422_validation"),
    ("jev", "400_overflow"),
    ("voyage", "400_too_many_tokens"),
}
"""Errors after which fewer documents are sent."""


@both_ways
@each_provider
def test_every_documented_error_is_reported(way, provider):
    """The error has status and place, but no key and no text; the request is retried or halved if that helps."""
    retry = {"attempts": 2, "min_wait": 0.001, "max_wait": 0.01}
    with StandIn(provider, locked=True) as server, opened(way, server, retry=retry, breaker=None) as call:
        for name, reply in errors(provider).items():
            halved = (provider, name) in HALVED
            for texts in ([DOCUMENT, SHORT], [DOCUMENT]) if halved else ([DOCUMENT, SHORT],):
                server.clear()
                server.always(reply)
                outcome = call(texts)
                error, sent, status = outcome.error(), len(server.requests), int(name[:3])
                where = f"{stage(server).type}: POST {server.url}{server.provider.paths[0]} answered {status}"
                assert str(error).startswith(where), name
                assert (error.status, error.retryable) == (status, status in PASSING_STATUSES), name
                assert len(str(error)) < 900, name
                assert_unsaid(str(error).removeprefix(where), server.key, 8)
                assert_unsaid(str(error), DOCUMENT, 14)
                assert SHORT not in str(error), name
                # A service that asks for more than `max_wait` is not asked again.
                again = error.retryable and (error.retry_after or 0) <= 0.01
                if halved and len(texts) > 1:
                    assert sent > 1, name
                else:
                    assert sent == (2 if again else 1), name
                assert outcome.usage == {"requests": sent} | ({"retries": 1} if again else {}), name


@both_ways
@pytest.mark.parametrize(
    ("status", "step"),
    {
        401: "check the API key in STANDIN_API_KEY",
        402: "check the account's balance and billing",
        403: "check the API key in STANDIN_API_KEY, and the account's balance and permissions",
        404: "check model and base_url",
        405: "check base_url",
        413: "lower max_documents, or shorten the documents",
        501: "check the model, which may not be a reranker",
        **dict.fromkeys((400, 415, 422, 424), f"check the model, the options and the texts against {ACCEPTED}"),
        **dict.fromkeys((408, 500, 503, 529), "the service fails; try again later"),
        407: "check the proxy",
        429: "set requests_per_minute or tokens_per_minute to what your plan allows, or lower max_concurrency",
    }.items(),
)
def test_an_error_names_the_next_step(way, status, step):
    """What the reader can do about it."""
    with StandIn("cohere") as server:
        server.always(server.error(status))
        assert str(ask(way, server, retry={"attempts": 1}).error()).endswith(f"; {step}")


@both_ways
def test_a_list_of_complaints_gives_place_and_message(way):
    """Never its `input`, which is the document that was complained of."""
    complaints = [
        {"type": "too_long", "loc": ["body", "documents", 3], "msg": "at most 512 tokens", "input": DOCUMENT},
        {"type": "missing", "loc": ["body", "model"], "msg": "field required", "input": {"documents": [DOCUMENT]}},
    ]
    with StandIn("infinity") as server:
        server.always(Reply(422, {"detail": complaints}))
        error = ask(way, server, [DOCUMENT]).error()
    assert error.detail == "body.documents.3: at most 512 tokens; body.model: field required"
    assert_unsaid(said(error), DOCUMENT, 12)


@both_ways
@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (Reply(502, b"<html><title>502 &amp; Bad\n Gateway</title>"), "an HTML page: 502 & Bad Gateway"),
        (Reply(502, b"<p>no"), "an HTML page"),
        (Reply(500, b""), ""),
        (Reply(500, None), ""),
        (Reply(500, "out of order"), "out of order"),
        (Reply(500, ["no"]), ""),
        (Reply(500, b"upstream\x00 \x1b[31mfailed\r\nX-Forged: 1"), "upstream� �[31mfailed X-Forged: 1"),
        (Reply(400, b"\xff\xfe"), "��"),
        (Reply(400, {"message": "half \ud83c"}), "half �"),
        (Reply(400, {"message": "x" * 900}), "x" * 300),
        (Reply(400, {"message": ["x"], "detail": 7, "code": 12, "id": None}), ""),
    ],
)  # fmt: skip
def test_detail_of_other_bodies(way, reply, detail):
    """The title of a page, the beginning of a text, on one line and without control characters."""
    with StandIn("voyage") as server:
        server.always(reply)
        error = ask(way, server, retry={"attempts": 1}).error()
    assert error.detail == detail
    assert re.search(rf"/v1/rerank answered {reply.status}; [^;]+(; try again later)?$", str(error)), str(error)


@both_ways
@pytest.mark.parametrize("shape", shapes(""))
def test_no_error_repeats_a_document_a_query_or_a_key(way, shape, caplog):
    """In whatever place and whatever dress a service repeats them; nor does anything behind the error, nor a log."""
    caplog.set_level(logging.DEBUG)
    private = ((DOCUMENT, 14), (ASKED, 14), (KEY, 8), (SHORT, 9))
    with StandIn("cohere") as server, opened(way, server, retry={"attempts": 1}) as call:
        assert server.key == KEY
        for text, size in private:
            for dress, dressed in disguised(text).items():
                if text == SHORT and dress not in ("whole", "upper", "spaced", "broken", "squeezed"):
                    continue  # parts of a name may stand in any message
                server.always(shapes(dressed)[shape])
                outcome = call([DOCUMENT, SHORT, "x"], query=ASKED)
                assert_unsaid(said(outcome.failures[0]) + repr(outcome.details) + repr(outcome.warnings), text, size)
    messages = "\n".join(record.getMessage() for record in caplog.records if record.name.partition(".")[0] != "asyncio")
    for text, size in private:
        assert_unsaid(messages, text, size)


@both_ways
def test_no_trace_of_a_query_in_a_pipelines_result(way, monkeypatch, caplog):
    """Error, reason, report and what is written of a result; nor in what shows a stage or a pipeline."""
    caplog.set_level(logging.DEBUG)
    with StandIn("cohere") as server, keyed(server):
        bad = {"message": f"{server.key}: {DOCUMENT} / {ASKED}", "id": server.key}
        server.always(Reply(400, bad))
        for on_error in ("raise", "skip"):
            reranker = stage(server, on_error=on_error, headers={"x-gateway": {"env": KEY_VARIABLE}})
            pipeline = Pipeline([ListedSearch(documents=(DOCUMENT, SHORT)), reranker])
            with pipeline:
                (result,) = pipeline.run_batch([ASKED], return_errors=True)
                report = result.report("cohere").to_dict()
                shown = [repr(report), repr(pipeline), repr(reranker), str(reranker), repr(reranker.config())]
            shown += [Pipeline([ListedSearch(), reranker]).to_yaml(), reranker.model_dump_json()]
            if on_error == "raise":
                shown.append(said(result.error))
                assert isinstance(result.error.__cause__, ServiceError)
            for text in (DOCUMENT, ASKED, server.key):
                assert_unsaid("\n".join(shown), text, 8 if text == server.key else 14)
    messages = "\n".join(record.getMessage() for record in caplog.records)
    for text in (DOCUMENT, ASKED, KEY):
        assert_unsaid(messages, text, 8 if text == KEY else 14)


@contextmanager
def not_http(answer: bytes):
    """A server whose every answer is these bytes; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve():
            while not ended.is_set():
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(65536):
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


@both_ways
@pytest.mark.parametrize("answer", ["{}", "HTTP/1.1 200 OK\r\n{}\r\n\r\n", "HTTP/1.1 {} OK\r\n\r\n", "SSH-2.0-{}\r\n"])
def test_an_answer_that_is_not_http_is_not_repeated(way, answer):
    """The library's error has the broken line in its text; nothing behind ours may repeat it."""
    text = f"{KEY} {DOCUMENT.splitlines()[0]}"
    with not_http(answer.format(text).encode()) as url, StandIn("cohere") as server:
        outcome = ask(way, server, [DOCUMENT], base_url=url)
    error = outcome.error()
    assert "the connection broke (RemoteProtocolError); check the service" in str(error)
    assert_unsaid(said(error), KEY, 8)
    assert_unsaid(said(error), DOCUMENT, 14)
