"""Shared fixtures: what stages can be created with, a database behind a socket, and certificates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from support.specimens import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Small models, a small collection and services that stages can be created with."""
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` at which Milvus Lite serves another collection like the world's, as a server would."""
    from milvus_lite.server_manager import server_manager_instance

    # Another database than the world's: a stage that closes a database ends its server.
    uri = World(tmp_path_factory.mktemp("served")).collection["uri"]
    yield server_manager_instance.start_and_get_uri(uri).rpartition("/")[2]
    server_manager_instance.release_server(uri)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A private CA."""
    return trustme.CA()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> dict[str, str]:
    """The files of the CA, and of a client's certificate that it signed, by their fields in ``tls``."""
    from .milvus_front import written

    folder: Path = tmp_path_factory.mktemp("certificates")
    return written(authority, folder, "own") | written(authority.issue_cert("search@example.org"), folder, "search")
