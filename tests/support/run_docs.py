"""Runs the blocks of a document in order, in a separate folder, as a reader would."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from typer.testing import CliRunner

from milvus_pipeline.cli.app import app
from support.console import Block

_SHELL = re.compile(r"[|&<>;*]")
_COLLECTION = "handbook.db"
_COPY = "copy.db"


class DocsRunner:
    """A reader's state: the current folder.

    Commands of milvus-pipeline run within this process, which has loaded torch already. Commands that need a shell run
    in other processes; as this process may hold the collection's file, they search a copy of it.

    Args:
        folder: the first current folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def console(self, block: Block) -> Iterator[tuple[str, str, str]]:
        """Yield each command of a block, with the output that the document shows and the output that it printed."""
        commands = block.commands()
        environment = self._copied_collection() if any("&" in command for command, _ in commands) else {}
        for command, shown in commands:
            yield command, shown, self._run(command, environment)

    def python(self, block: Block) -> str:
        """Run a block of Python and return what it printed."""
        printed = io.StringIO()
        with chdir(self.folder), redirect_stdout(printed):
            exec(compile(block.text, f"line {block.line}", "exec"), {})  # noqa: S102 - the document's own text
        return printed.getvalue()

    def _run(self, command: str, environment: Mapping[str, str]) -> str:
        words = shlex.split(command)
        if words[0] == "cd":
            self.folder = self.folder / words[1]
            return ""
        if words[0] != "milvus-pipeline" or _SHELL.search(command):
            return self._run_in_shell(command, environment)
        with chdir(self.folder), patch.dict(os.environ, environment):
            done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
        return done.output

    def _copied_collection(self) -> dict[str, str]:
        """The environment in which the commands search a copy of the collection."""
        shutil.copytree(self.folder / _COLLECTION, self.folder / _COPY, ignore=shutil.ignore_patterns("LOCK", "*.lock"))
        return {"MILVUS_URI": f"./{_COPY}"}

    def _run_in_shell(self, command: str, environment: Mapping[str, str]) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-c", command],  # noqa: S607 - the shell of the user who runs the tests
            cwd=self.folder,
            env={**os.environ, "PATH": path, "LC_ALL": "C", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        return done.stdout


@contextmanager
def encoding_each_text_once() -> Iterator[None]:
    """Keep the token vectors that a BERT model gives for a text.

    The commands of a tutorial read the same passages dozens of times, which would take minutes. All BERT models in the
    block must have the same weights.
    """
    import torch
    from transformers import BertModel

    forward = BertModel.forward
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def remember(self: BertModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, **given: Any) -> Any:
        rows = [tuple(ids[: sum(mask)]) for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True)]
        if new := [number for number, row in enumerate(rows) if row not in known]:
            own = {name: value[new] if isinstance(value, torch.Tensor) else value for name, value in given.items()}
            output = forward(self, input_ids=input_ids[new], attention_mask=attention_mask[new], **own)
            for number, hidden in zip(new, output.last_hidden_state, strict=True):
                known[rows[number]] = hidden[: len(rows[number])].clone()
        padded = torch.nn.utils.rnn.pad_sequence([known[row] for row in rows], batch_first=True)
        return SimpleNamespace(last_hidden_state=padded)

    with patch.object(BertModel, "forward", remember):
        yield
