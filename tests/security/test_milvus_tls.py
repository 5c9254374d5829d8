"""TLS to Milvus: private CAs, client certificates and names, and the messages if they do not fit."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from milvus_pipeline import ConfigError, Pipeline, Query, RetrySettings, SearchResult, StageError
from milvus_stages import MilvusSearch
from milvus_stages.milvus.client.pool import connections
from support.specimens import World

from .milvus_front import front, written

HANG_SECONDS = 8.0
"""A permanent failure takes much less; a search that waits for its server gives up after 10."""


def search(world: World, uri: str, tls: dict[str, str] | None, **fields: Any) -> MilvusSearch:
    return MilvusSearch(**{**world.collection, "uri": uri, "tls": tls, **fields})


def ids(world: World, uri: str, tls: dict[str, str] | None) -> list[list[int]]:
    """Return the keys that the search finds, blocking and on an event loop."""
    query = Query("red", vector=world.vector("red"))

    async def awaited(pipeline: Pipeline) -> SearchResult:
        result = await pipeline.arun(query)
        await pipeline.aclose()
        return result

    with Pipeline([search(world, uri, tls)]) as pipeline:
        blocking = pipeline.run(query)
    return [[hit.id for hit in result] for result in (blocking, asyncio.run(awaited(pipeline)))]


def refused(world: World, uri: str, tls: dict[str, str] | None) -> str:
    """Return the message of a stage that cannot be opened, which must come soon."""
    started = time.monotonic()
    with pytest.raises(StageError) as caught:
        search(world, uri, tls, retry=RetrySettings(attempts=2, min_wait=0.01, max_wait=0.02)).open()
    assert time.monotonic() - started < HANG_SECONDS
    assert caught.value.reason_code == "unavailable"
    return str(caught.value)


@pytest.mark.parametrize("mutual", [False, True])
def test_a_search_over_tls(
    world: World, target: str, authority: trustme.CA, files: dict[str, str], mutual: bool
) -> None:
    """With a private CA, and with certificates on both sides, a search finds the same as without TLS."""
    tls = files if mutual else {"ca": files["ca"]}
    with front(target, identity=authority.issue_cert("127.0.0.1"), clients=authority if mutual else None) as server:
        assert ids(world, server.uri, tls) == ids(world, f"http://{target}", None)
        assert [name for name, _ in server.calls].count("Search") == 2


def test_a_server_name(world: World, target: str, authority: trustme.CA, files: dict[str, str]) -> None:
    """A server whose certificate has another name than its address is accepted with `server_name`."""
    with front(target, identity=authority.issue_cert("milvus.example.org")) as server:
        tls = {"ca": files["ca"], "server_name": "milvus.example.org"}
        assert len(ids(world, server.uri, tls)) == 2
        message = refused(world, server.uri, {"ca": files["ca"]})
        assert message.endswith("certificate is for another name; put that name into `uri`, or into `tls.server_name`")
        assert "is for another name" in refused(world, server.uri, {**tls, "server_name": "other.example.org"})


@pytest.mark.parametrize("ca", ["none", "another"])
def test_a_server_that_is_not_trusted(
    world: World, target: str, authority: trustme.CA, tmp_path: Path, ca: str
) -> None:
    """A certificate that neither a public CA nor the configured one signed is refused before anything is sent."""
    tls = written(trustme.CA(), tmp_path, "another") if ca == "another" else None
    with front(target, identity=authority.issue_cert("127.0.0.1")) as server:
        message = refused(world, server.uri, tls)
        untrusted = "the server's certificate is not trusted; put the file of the CA that signed it into `tls.ca`"
        assert message.endswith(f"{server.uri}: {untrusted}")
        assert server.calls == []


def test_a_certificate_that_has_expired(
    world: World, target: str, authority: trustme.CA, files: dict[str, str]
) -> None:
    """An expired certificate is refused, and the message says that the server has to renew it."""
    old = authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    with front(target, identity=old) as server:
        assert "the server's certificate has expired; renew it on the server" in refused(
            world, server.uri, {"ca": files["ca"]}
        )


def test_a_server_that_wants_a_certificate(
    world: World, target: str, authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    """A server that ends connections without a valid client certificate gives no reason; the message has a hint."""
    stranger = written(trustme.CA().issue_cert("stranger@example.org"), tmp_path, "stranger")
    with front(target, identity=authority.issue_cert("127.0.0.1"), clients=authority) as server:
        for tls in ({"ca": files["ca"]}, {"ca": files["ca"], **stranger}):
            assert "whether the server requires https:// or a client certificate (`tls`)" in refused(
                world, server.uri, tls
            )
        assert server.calls == []


def test_the_wrong_scheme(world: World, target: str, authority: trustme.CA, files: dict[str, str]) -> None:
    """TLS to a server without it, and no TLS to a server that requires it, are reported as such."""
    message = refused(world, f"https://{target}", {"ca": files["ca"]})
    assert "the server does not speak TLS at this port; write http:// in `uri`" in message
    with front(target, identity=authority.issue_cert("127.0.0.1")) as server:
        assert "whether the server requires https://" in refused(world, server.uri.replace("https", "http"), None)


def test_connections_are_shared_by_what_they_trust(
    world: World, target: str, authority: trustme.CA, files: dict[str, str]
) -> None:
    """Stages share a connection only if their certificates are the same."""
    one, other = {"ca": files["ca"]}, files
    with front(target, identity=authority.issue_cert("127.0.0.1")) as server:
        stages = [search(world, server.uri, tls) for tls in (one, one, other)]
        for stage in stages:
            stage.open()
        first, second, third = (stage.opened.connection for stage in stages)
        assert first is second is not third
        assert connections.users(first) == 2
        for stage in stages:
            stage.close()


MISFIT = "are not a PEM certificate and its unencrypted key; check both files"


def test_files_are_checked_before_anything_is_sent(
    world: World, target: str, authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    """Each kind of mistake in a file has its message, which repeats nothing of the file."""
    text = tmp_path / "text.pem"
    text.write_text("hush-hush")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(Path(files["client_key"]).read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"hush")))
    other = written(authority.issue_cert("other@example.org"), tmp_path, "other")
    with front(target, identity=authority.issue_cert("127.0.0.1"), clients=authority) as server:
        for fields, message in (
            (
                {"ca": "missing.pem"},
                "tls.ca: missing.pem cannot be read: No such file or directory; check the path and its permissions",
            ),
            ({"ca": str(tmp_path)}, f"tls.ca: {tmp_path} cannot be read: Is a directory"),
            ({"ca": "nul\0.pem"}, "cannot be read: it is not a valid path"),
            ({"ca": str(text)}, f"tls.ca: {text} holds no PEM certificate; name the CA's file"),
            ({"client_key": "missing.key"}, "tls.client_key: missing.key cannot be read"),
            ({"client_cert": str(text)}, MISFIT),
            ({"client_key": other["client_key"]}, MISFIT),
            ({"client_key": str(locked)}, MISFIT),
        ):
            with pytest.raises(StageError) as caught:
                search(world, server.uri, {**files, **fields}).open()
            assert message in str(caught.value)
            assert "hush" not in str(caught.value)
        assert server.calls == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"uri": "http://h:1", "tls": {"ca": "a.pem"}},
            "tls: only applies to an https:// server; write https:// in `uri`",
        ),
        ({"uri": "a.db", "tls": {"ca": "a.pem"}}, "tls: only applies to an https:// server"),
        ({"tls": {}}, "tls: is empty; remove it, or name the `ca`"),
        ({"tls": {"client_cert": "a.pem", "ca": "b.pem"}}, "tls.client_key: is missing"),
        ({"tls": {"client_key": "a.pem", "ca": "b.pem"}}, "tls.client_cert: is missing"),
        (
            {"tls": {"client_cert": "a.pem", "client_key": "b.pem"}},
            "tls.ca: is missing; a client certificate also needs",
        ),
        ({"tls": {"client_kye": "a.pem"}}, "tls.client_kye: unknown key; did you mean 'client_key'?"),
        (
            {"tls": {"ca": "-----BEGIN PRIVATE KEY-----hush"}},
            "tls.ca: must be the path of a PEM file, not its content",
        ),
        ({"tls": "hush.pem"}, "tls: must be a mapping of keys to values, got a string"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    """Invalid `tls` settings are refused when the stage is made, without repeating what may be a key."""
    with pytest.raises(ConfigError) as caught:
        MilvusSearch(**{"uri": "https://h:1", "collection": "c", **fields})
    assert message in str(caught.value)
    assert "hush" not in str(caught.value)


def test_the_way_through_yaml(files: dict[str, str]) -> None:
    """Paths may be strings or `Path`; the written YAML makes an equal stage."""
    stage = MilvusSearch(uri="https://h:1", collection="c", tls={**files, "ca": Path(files["ca"])})
    pipeline = Pipeline([stage])
    assert stage.config()["tls"] == files
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
