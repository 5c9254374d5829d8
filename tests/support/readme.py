"""The code of the README and of the documents, for tests that run its very text."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
_SUITE = "tests/conformance/test_conformance.py"


def blocks(language: str, heading: str, document: Path = README) -> list[str]:
    """The code blocks of a language in the section under a heading."""
    text = document.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def installed_plugin(folder: Path, module: str, heading: str, document: Path = README) -> Path:
    """A folder into which the plugin of a section is installed, as pip installs any third party's.

    Args:
        folder: empty; the package is written here, too.
        module: the name of the file that the section's first block of Python is put into.
        heading: of the section.
        document: that it is in.
    """
    source, target = folder / "source", folder / "target"
    source.mkdir()
    (source / f"{module}.py").write_text(blocks("python", heading, document)[0], encoding="utf-8")
    (source / "pyproject.toml").write_text(blocks("toml", heading, document)[0], encoding="utf-8")
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, source], check=True, capture_output=True)
    return target


def conformance(kind: str, target: Path, **environment: str) -> int:
    """Run the conformance suite for a stage of an installed plugin; the number of tests that passed.

    Raises:
        AssertionError: one did not; the message is what pytest printed.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            kind,
            "tests/conformance/test_conformance.py",
        ],
        cwd=README.parent,
        env={**os.environ, **environment, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    if done.returncode != 0 or passed is None:
        raise AssertionError(done.stdout)
    return int(passed[1])
