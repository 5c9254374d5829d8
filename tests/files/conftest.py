"""What the tests of files share."""

import gzip

import pytest


@pytest.fixture
def make(tmp_path):
    """Return a function that writes bytes or text into a file of the test's folder, gzipped if its name says so."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path

    return write
