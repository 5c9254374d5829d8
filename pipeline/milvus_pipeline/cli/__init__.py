"""The command ``milvus-pipeline``; each command is a module of its name, listed in ``app``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command on ``sys.argv`` and exit: 0 done, 1 something failed, 2 bad configuration, usage or input."""
    _fill_streams()
    from milvus_pipeline.cli.app import app

    app(prog_name="milvus-pipeline")


def _fill_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that the parent process closed.

    Otherwise the next file that is opened, such as the output of a job, would receive what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
