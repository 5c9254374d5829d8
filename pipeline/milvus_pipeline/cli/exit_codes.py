"""How the command ends: one readable message on stderr and an exit code, whatever went wrong."""

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
from typing import Annotated, NoReturn, ParamSpec

import typer

from milvus_pipeline.errors import ConfigError, InputError, PipelineError
from milvus_pipeline.text import error_text, printable


class Terminated(KeyboardInterrupt):
    """SIGTERM was sent: by ``kill``, a shutdown, a batch system whose time is up."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """While this lasts SIGTERM raises Terminated in the main thread. Without effect in another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
TERMINATED = 143  # 128 + SIGTERM
PIPE_CLOSED = 141  # 128 + SIGPIPE, what `cat` ends with when its reader leaves

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

P = ParamSpec("P")


class UsageError(PipelineError):
    """The command line asks for what cannot be done; nothing was run."""


def tell(message: str) -> None:
    """Write a line to stderr."""
    typer.echo(printable(message), err=True)


def tell_error(error: BaseException) -> None:
    """Write an error to stderr, every line of it led by ``error:``."""
    expected = isinstance(error, PipelineError)
    text = str(error) if expected else f"{error_text(error)}; run with --debug for the traceback"
    for line in text.splitlines():
        tell(f"error: {line}")


def exit_code(error: BaseException) -> int:
    """2 where the configuration, the command line or an input file is wrong, 1 where the work failed."""
    return BAD_USAGE if isinstance(error, ConfigError | UsageError | InputError) else FAILED


def check_nothing_run(error: BaseException, count: int) -> None:
    """Raise an input file's fault as one of the work, where it was met behind queries that were answered already."""
    if count and isinstance(error, InputError):
        raise PipelineError(str(error)) from error


def reported(command: Callable[P, int]) -> Callable[P, None]:
    """Decorator for a command that returns its exit code: turns what it raises into a message and a code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
            sys.stdout.flush()
        except Terminated:
            tell("terminated")
            code = TERMINATED
        except KeyboardInterrupt:
            tell("interrupted")
            code = INTERRUPTED
        except BrokenPipeError:
            _drop_stdout()
            code = PIPE_CLOSED
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            tell_error(error)
            _drop_stdout_if_full()
            code = exit_code(error)
        raise typer.Exit(code)

    return run


def _drop_stdout_if_full() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()


def _drop_stdout() -> None:
    """Point stdout nowhere, so that the interpreter's last flush does not fail, complain and change the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
