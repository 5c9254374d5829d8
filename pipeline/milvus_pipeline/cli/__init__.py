"""The command ``milvus-pipeline``: run, ingest, validate, doctor, schema, stages."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command on ``sys.argv`` and exit: 0 done, 1 something failed, 2 bad configuration or usage."""
    _fill_streams()
    from milvus_pipeline.cli.app import app

    app(prog_name="milvus-pipeline")


def _fill_streams() -> None:
    """Put the null device where stdin, stdout or stderr was closed, as some that start processes do.

    Else the next file that is opened, such as the output of a job, would be what libraries write their messages to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
