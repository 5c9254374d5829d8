"""Runs what a document shows, block after block, in a folder of its own, as a reader would."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path

from typer.testing import CliRunner

from milvus_pipeline.cli.app import app
from support.console import Block

_SHELL = re.compile(r"[|&<>;*]")
_COLLECTION = "handbook.db"
_COPY = "copy.db"


class DocsRunner:
    """The state of a reader: the folder that they are in.

    The command is run within this process, which has torch loaded already. What a shell is needed for runs in
    processes of its own; as this process may hold the collection's file, they search a copy of it.

    Args:
        folder: to begin in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def console(self, block: Block) -> Iterator[tuple[str, str, str]]:
        """Each command of a block, with what it shows and what it printed."""
        commands = block.commands()
        apart = any("&" in command for command, _ in commands)
        for command, shown in commands:
            yield command, shown, self._apart(command) if apart else self._run(command)

    def python(self, block: Block) -> str:
        """What a block of Python printed."""
        return self.python_text(block.text, f"line {block.line}")

    def python_text(self, text: str, place: str = "document") -> str:
        """What a program printed."""
        printed = io.StringIO()
        with chdir(self.folder), redirect_stdout(printed):
            exec(compile(text, place, "exec"), {})  # noqa: S102 - the document's own text
        return printed.getvalue()

    def _run(self, command: str) -> str:
        words = shlex.split(command)
        if words[0] == "cd":
            self.folder = self.folder / words[1]
            return ""
        if words[0] != "milvus-pipeline" or _SHELL.search(command):
            return self._shell(command)
        with chdir(self.folder):
            done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
        return done.output

    def _apart(self, command: str) -> str:
        copy = self.folder / _COPY
        if not copy.exists():
            shutil.copytree(self.folder / _COLLECTION, copy, ignore=shutil.ignore_patterns("LOCK", "*.lock"))
        return self._shell(command, MILVUS_URI=f"./{_COPY}")

    def _shell(self, command: str, **environment: str) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-c", command],  # noqa: S607 - the shell of whoever runs the tests
            cwd=self.folder,
            env={**os.environ, "PATH": path, "LC_ALL": "C", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        return done.stdout
