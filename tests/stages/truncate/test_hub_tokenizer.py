"""A tokenizer of the hub: one file is downloaded, from a server that the test runs."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from tokenizers import Tokenizer, models

OPEN = (
    "from milvus_stages import Truncate\n"
    "try:\n"
    "    Truncate(max_tokens=5, tokenizer={name!r}).open()\n"
    "    print('open')\n"
    "except Exception as error:\n"
    "    print(type(error).__name__, error)\n"
)
TOKENIZER = Tokenizer(models.BPE()).to_str().encode()
HELD = {f"/{name}/resolve/main/tokenizer.json": TOKENIZER for name in ("gpt2", "some-org/some-model")}


class Hub(BaseHTTPRequestHandler):
    """Answers downloads as the hub does, and records the paths requested."""

    def do_HEAD(self):
        """The headers of a GET."""
        self.server.paths.append(self.path)
        content = HELD.get(self.path, b"")
        self.send_response(200 if content else 404)
        if content:
            self.send_header("ETag", '"' + "e" * 40 + '"')
            self.send_header("X-Repo-Commit", "c" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if "/bare/" in self.path else "RepoNotFound")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        """The file."""
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        """Keep stderr free."""


@pytest.fixture
def hub():
    """The server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths = []
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def opening(hub, tmp_path):
    """Opens a stage with a tokenizer in a process that uses this hub; returns what the process prints."""

    def run(name, **environment):
        hub_here = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home")}
        given = {**os.environ, **hub_here, "NO_PROXY": "*", "HF_HUB_OFFLINE": "0", **environment}
        command = [sys.executable, "-c", OPEN.format(name=name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=given, cwd=tmp_path)
        return done.stdout.strip() or done.stderr

    return run


@pytest.mark.parametrize("name", ["gpt2", "some-org/some-model"])
def test_the_tokenizer_alone_is_fetched_once(hub, opening, name):
    """Ids with and without an organization: one file is requested, no weights, and the cache works offline."""
    assert opening(name) == "open"
    # Only the paths of this model: the library makes other requests to the hub as well.
    assert {path for path in hub.paths if name in path} == {f"/{name}/resolve/main/tokenizer.json"}
    hub.paths.clear()
    assert opening(name, HF_HUB_OFFLINE="1") == "open"
    assert not any(name in path for path in hub.paths)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some-org/bare", "'some-org/bare' has no tokenizer.json on the hub; use a model that has it, or name a local"),
        ("gpt9", "the Hugging Face hub has no model 'gpt9' that you may read; check the spelling"),
    ],
)
def test_a_tokenizer_that_the_hub_does_not_have(opening, name, message):
    """A model without that file and a model that does not exist have different messages."""
    assert opening(name).startswith(f"StageError tokenizer: {message}")
