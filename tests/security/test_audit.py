"""`make audit`: what it finds, and what it reports if it cannot look."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def audit() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "audit", module)  # where dataclasses look for their module
        spec.loader.exec_module(module)
        yield module


def test_what_is_declared_is_what_is_imported(audit: Any) -> None:
    """Imports and declared dependencies match, for each extra and for the tests."""
    assert audit.disagreements() == []


def test_disagreements_are_found(audit: Any, tmp_path: Path) -> None:
    """It reports undeclared imports, those declared for another extra or the tests only, and unused dependencies."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["httpx>=0.28", "rich"]\n[project.optional-dependencies]\nlocal = ["torch"]\n'
        'lite = ["milvus-lite"]\ntest = ["milvus-search-pipeline[local]", "pytest"]\n'
    )
    lines = [
        "import httpx, json, milvus_pipeline",
        "import numpy",
        "import torch",
        "EXTRA = 'lite'",
        "if TYPE_CHECKING:\n    import transformers",
        "def f():\n    import torch\n    import pytest\n    from . import x",
        "require('torch.nn', extra='local'), require('torch', extra=None), require('torch', extra=EXTRA)",
        "require('milvus_lite', extra=EXTRA)",
    ]
    for folder in ("pipeline/milvus_pipeline", "stages", "tests", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pipeline" / "milvus_pipeline" / "x.py").write_text("\n".join(lines))
    (tmp_path / "tests" / "test_x.py").write_text("import torch, pytest, yaml\npytest.importorskip('numpy')\n")
    found = [problem for problem in audit.disagreements(tmp_path) if "listed as not imported" not in problem]
    assert sorted(found) == [
        "pipeline/milvus_pipeline/x.py:11: imports torch, which is not in the dependencies",
        "pipeline/milvus_pipeline/x.py:11: imports torch, which is not in the extra 'lite'",
        "pipeline/milvus_pipeline/x.py:2: imports numpy, which is not in the dependencies",
        "pipeline/milvus_pipeline/x.py:3: imports torch, which is not in the dependencies",
        "pipeline/milvus_pipeline/x.py:6: imports transformers, which is not in any extra",
        "pipeline/milvus_pipeline/x.py:9: imports pytest, which is not in any extra",
        "pyproject.toml: rich is imported nowhere",
        "tests/test_x.py:1: imports yaml, which is not in the extra 'test'",
        "tests/test_x.py:2: imports numpy, which is not in the extra 'test'",
    ]


@pytest.fixture
def osv(audit: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A vulnerability service that knows what the test puts in, as identifiers by package."""
    known: dict[str, str] = {}

    class Service(BaseHTTPRequestHandler):
        """Answers like OSV."""

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            packages = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [], "versions": [asked["version"]]}]
            found = {"id": known.get(name), "summary": "s", "affected": packages, "published": "2020-01-01T00:00:00Z"}
            body = json.dumps({"vulns": [found]} if name in known else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(audit.OSV_VARIABLE, f"http://127.0.0.1:{server.server_port}/v1/query")
        monkeypatch.setattr(audit, "SERVICES", ("osv",))
        yield known
        server.shutdown()


def test_a_vulnerability_that_is_not_accepted_is_a_finding(
    audit: Any, osv: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vulnerability is a finding unless it is accepted with a reason."""
    osv |= {"jinja2": "PYSEC-1", "idna": "PYSEC-2"}
    found = audit.vulnerabilities()
    assert sorted(problem.split(":")[1].strip() for problem in found) == [
        "PYSEC-1, fixed in no release",
        "PYSEC-2, fixed in no release",
    ]
    assert "packages looked up" in capsys.readouterr().out
    monkeypatch.setattr(audit, "ACCEPTED", {"PYSEC-1": "a reason", "PYSEC-2": "another"})
    assert audit.vulnerabilities() == []


def test_a_service_that_knows_nothing_is_none(
    audit: Any, osv: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mirror that answers "not found" to everything is not trusted."""
    assert audit.vulnerabilities() is None
    assert "knows no vulnerability of jinja2==2.11.2, which has some" in capsys.readouterr().out


def test_a_service_that_is_not_there_is_reported(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output says why vulnerabilities were not looked for; the other checks still count."""
    monkeypatch.setenv(audit.OSV_VARIABLE, "http://127.0.0.1:9/v1/query")
    monkeypatch.setattr(audit, "SERVICES", ("osv",))
    assert audit.main() == 0
    output = capsys.readouterr().out
    assert "vulnerable: NOT LOOKED FOR" in output
    assert "127.0.0.1" in output
    assert "installed: nothing found" in output
