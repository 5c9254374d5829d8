"""The edge of the command line: messages on stderr, errors rendered once, exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import NoReturn, ParamSpec

import typer

from milvus_pipeline.errors import ConfigError, InputError, PipelineError
from milvus_pipeline.text import error_text, printable

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
PIPE_CLOSED = 141  # 128 + SIGPIPE, what `cat` ends with when its reader leaves
TERMINATED = 143  # 128 + SIGTERM

P = ParamSpec("P")


class UsageError(PipelineError):
    """The command line is wrong; nothing was run."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received: from ``kill``, a shutdown, or a batch system at its time limit."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise Terminated in the main thread on SIGTERM, within the context. No effect in another thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def print_message(message: str) -> None:
    """Print a line to stderr."""
    typer.echo(printable(message), err=True)


def print_warning(message: str) -> None:
    """Print a warning to stderr."""
    print_message(f"warning: {message}")


def print_error(error: BaseException) -> int:
    """Print an error to stderr, each of its lines led by ``error:``; return the exit code.

    The code is 2 if the configuration, the command line or an input file is wrong, and 1 if the work failed.
    """
    expected = isinstance(error, PipelineError)
    text = str(error) if expected else f"{error_text(error)}; run with --debug for the traceback"
    for line in text.splitlines():
        print_message(f"error: {line}")
    return BAD_USAGE if isinstance(error, ConfigError | UsageError | InputError) else FAILED


def raise_as_failure(error: BaseException) -> NoReturn:
    """Raise the error after queries were run: a fault of an input file then ends the command with 1."""
    if isinstance(error, InputError):
        raise PipelineError(error.what, error.next_step, place=error.place) from error
    raise error


def command(function: Callable[P, int]) -> Callable[P, None]:
    """Decorate a command that returns its exit code: turn what it raises into a message and a code."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            terminated = isinstance(error, Terminated)
            print_message("terminated" if terminated else "interrupted")
            code = TERMINATED if terminated else INTERRUPTED
        except BrokenPipeError:
            _drop_stdout()
            code = PIPE_CLOSED
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            code = print_error(error)
            try:
                sys.stdout.flush()
            except OSError:
                _drop_stdout()
        raise typer.Exit(code)

    return run


def _drop_stdout() -> None:
    """Redirect stdout to the null device, so that the interpreter's last flush cannot fail and change the code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
