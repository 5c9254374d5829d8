"""TLS to Milvus: a private CA, client certificates and names, and what is said where they do not fit."""

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
from support.specimens import World

from .milvus_front import front, written

HANG_SECONDS = 8.0
"""What fails for good fails in much less; a search that waits for its server gives up after 10."""


def search(world: World, uri: str, tls: dict[str, str] | None, **fields: Any) -> MilvusSearch:
    return MilvusSearch(**{**world.collection, "uri": uri, "tls": tls, **fields})


def ids(world: World, uri: str, tls: dict[str, str] | None) -> list[list[int]]:
    """What the search finds, blocking and on an event loop."""
    query = Query("red", vector=world.vector("red"))

    async def awaited(pipeline: Pipeline) -> SearchResult:
        result = await pipeline.arun(query)
        await pipeline.aclose()
        return result

    with Pipeline([search(world, uri, tls)]) as pipeline:
        blocking = pipeline.run(query)
    return [[hit.id for hit in result] for result in (blocking, asyncio.run(awaited(pipeline)))]


def refused(world: World, uri: str, tls: dict[str, str] | None) -> str:
    """What is said when the stage cannot open, which it finds out soon."""
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
    """With a private CA, and with certificates on both sides, it finds what it finds without."""
    tls = files if mutual else {"ca": files["ca"]}
    with front(target, identity=authority.issue_cert("127.0.0.1"), clients=authority if mutual else None) as server:
        assert ids(world, server.uri, tls) == ids(world, f"http://{target}", None)
        assert [name for name, _ in server.calls].count("Search") == 2


def test_a_name_of_its_own(world: World, target: str, authority: trustme.CA, files: dict[str, str]) -> None:
    """A server whose certificate has another name than its address is known by `server_name`."""
    with front(target, identity=authority.issue_cert("milvus.example.org")) as server:
        tls = {"ca": files["ca"], "server_name": "milvus.example.org"}
        assert len(ids(world, server.uri, tls)) == 2
        said = refused(world, server.uri, {"ca": files["ca"]})
        assert said.endswith("certificate is for another name; put that name into `uri`, or into `tls.server_name`")
        assert "is for another name" in refused(world, server.uri, {**tls, "server_name": "other.example.org"})


@pytest.mark.parametrize("ca", ["none", "another"])
def test_a_server_that_is_not_trusted(
    world: World, target: str, authority: trustme.CA, tmp_path: Path, ca: str
) -> None:
    """The public CAs did not sign it, or the one that is named did not."""
    tls = written(trustme.CA(), tmp_path, "another") if ca == "another" else None
    with front(target, identity=authority.issue_cert("127.0.0.1")) as server:
        said = refused(world, server.uri, tls)
        untrusted = "the server's certificate is not trusted; put the file of the CA that signed it into `tls.ca`"
        assert said.endswith(f"{server.uri}: {untrusted}")
        assert server.calls == []


def test_a_certificate_that_has_expired(
    world: World, target: str, authority: trustme.CA, files: dict[str, str]
) -> None:
    """It is not taken, and the reader learns that it is a matter of the server."""
    old = authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    with front(target, identity=old) as server:
        assert "the server's certificate has expired; renew it there" in refused(world, server.uri, {"ca": files["ca"]})


def test_a_server_that_wants_a_certificate(
    world: World, target: str, authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    """It ends connections without one, and with one of another CA, without a word; the message has the hint."""
    stranger = written(trustme.CA().issue_cert("stranger@example.org"), tmp_path, "stranger")
    with front(target, identity=authority.issue_cert("127.0.0.1"), clients=authority) as server:
        for tls in ({"ca": files["ca"]}, {"ca": files["ca"], **stranger}):
            assert "whether the server wants https:// or a client certificate (`tls`)" in refused(
                world, server.uri, tls
            )
        assert server.calls == []


def test_the_wrong_scheme(world: World, target: str, authority: trustme.CA, files: dict[str, str]) -> None:
    """TLS where there is none, and none where there is."""
    said = refused(world, f"https://{target}", {"ca": files["ca"]})
    assert "the server does not speak TLS at this port; write http:// in `uri`" in said
    with front(target, identity=authority.issue_cert("127.0.0.1")) as server:
        assert "whether the server wants https://" in refused(world, server.uri.replace("https", "http"), None)


def test_connections_are_shared_by_what_they_trust(
    world: World, target: str, authority: trustme.CA, files: dict[str, str]
) -> None:
    """A stage never gets a connection that was opened with other certificates."""
    one, other = {"ca": files["ca"]}, files
    with front(target, identity=authority.issue_cert("127.0.0.1")) as server:
        stages = [search(world, server.uri, tls) for tls in (one, one, other)]
        for stage in stages:
            stage.open()
        connections = [stage._opened.connection for stage in stages if stage._opened is not None]
        assert connections[0] is connections[1] is not connections[2]
        assert connections.users(connections[0]) == 2
        for stage in stages:
            stage.close()


def test_files_are_looked_at_before_anything_is_sent(
    world: World, target: str, authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    """Each kind of mistake has a message of its own, which repeats nothing of a file."""
    text = tmp_path / "text.pem"
    text.write_text("hush-hush")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(Path(files["client_key"]).read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"hush")))
    other = written(authority.issue_cert("other@example.org"), tmp_path, "other")
    with front(target, identity=authority.issue_cert("127.0.0.1"), clients=authority) as server:
        for fields, says in (
            (
                {"ca": "missing.pem"},
                f"tls.ca: there is no file missing.pem (relative paths are taken from {Path.cwd()})",
            ),
            ({"ca": str(tmp_path)}, f"tls.ca: {tmp_path} cannot be read: Is a directory"),
            ({"ca": "nul\0.pem"}, "cannot be read: it is no path"),
            ({"ca": str(text)}, f"tls.ca: {text} holds no certificate in PEM form; name the CA's file"),
            ({"client_key": "missing.key"}, "tls.client_key: there is no file missing.key"),
            ({"client_cert": str(text)}, "are no certificate and private key in PEM form; check both files"),
            ({"client_key": other["client_key"]}, "is the key of another certificate than"),
            ({"client_key": str(locked)}, "is encrypted, and gRPC asks for no password"),
        ):
            with pytest.raises(StageError) as caught:
                search(world, server.uri, {**files, **fields}).open()
            assert says in str(caught.value)
            assert "hush" not in str(caught.value)
        assert server.calls == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"uri": "http://h:1", "tls": {"ca": "a.pem"}},
            "tls: belongs to a server of https://; write it in `uri`",
        ),
        ({"uri": "a.db", "tls": {"ca": "a.pem"}}, "tls: belongs to a server of https://"),
        ({"tls": {}}, "tls: says nothing; leave it out, or name the `ca`"),
        ({"tls": {"client_cert": "a.pem", "ca": "b.pem"}}, "tls: client_key is missing"),
        ({"tls": {"client_key": "a.pem", "ca": "b.pem"}}, "tls: client_cert is missing"),
        ({"tls": {"client_cert": "a.pem", "client_key": "b.pem"}}, "tls: ca is missing: with a client certificate"),
        ({"tls": {"client_kye": "a.pem"}}, "tls.client_kye: unknown key; did you mean 'client_key'?"),
        (
            {"tls": {"ca": "-----BEGIN PRIVATE KEY-----hush"}},
            "tls.ca: must be the path of a PEM file, not what is in it",
        ),
        ({"tls": "hush.pem"}, "tls: must be a mapping of keys to values, got a string"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], says: str) -> None:
    """They are refused when the stage is made; what may be a key is not repeated."""
    with pytest.raises(ConfigError) as caught:
        MilvusSearch(**{"uri": "https://h:1", "collection": "c", **fields})
    assert says in str(caught.value)
    assert "hush" not in str(caught.value)


def test_the_way_through_yaml(files: dict[str, str]) -> None:
    """Paths as text or as `Path`; what is written is the same stage."""
    stage = MilvusSearch(uri="https://h:1", collection="c", tls={**files, "ca": Path(files["ca"])})
    pipeline = Pipeline([stage])
    assert stage.config()["tls"] == files
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
