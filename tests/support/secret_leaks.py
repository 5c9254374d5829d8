"""Finds secrets and documents, plain or encoded, in everything that a program prints or logs."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import yaml

from milvus_pipeline.plugin import Stage


def spellings(text: str) -> set[str]:
    """Return the text plain, escaped, in hexadecimal digits, and in base64 at each of its three offsets."""
    data = text.encode()
    found = {text, json.dumps(text)[1:-1], repr(text)[1:-1], quote(text, safe=""), data.hex()}
    for lead in range(3):
        packed = base64.b64encode(b"\0" * lead + data).decode()
        inner = packed[4 if lead else 0 : len(packed) - 4]  # without the characters that depend on its neighbours
        found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return found


def leaked(canaries: Iterable[str], outputs: Iterable[Any]) -> list[str]:
    """Return the canaries that occur in the outputs, each with some context."""
    found = []
    whole = "\n".join(each if isinstance(each, str) else str(each) for each in outputs)
    for canary in canaries:
        for spelling in spellings(canary):
            at = whole.find(spelling)
            if at >= 0:
                found.append(f"{canary!r} in {whole[max(0, at - 200) : at + len(spelling) + 60]!r}")
                break
    return found


def printed(error: BaseException) -> list[str]:
    """Return all forms in which an exception may be printed: alone, in a traceback with its causes, its attributes."""
    texts = [str(error), repr(error), repr(error.args), "".join(traceback.format_exception(error))]
    return [*texts, repr(vars(error)), *pickled(error)]


def shown(stage: Stage) -> list[str]:
    """Return all forms in which a stage may be printed."""
    config = stage.config()
    texts = [repr(stage), str(stage), repr(stage.model_dump()), stage.model_dump_json(), json.dumps(config)]
    return [*texts, yaml.safe_dump(config), *pickled(stage)]


def pickled(thing: Any) -> list[str]:
    """Return the content of its pickle, if it can be pickled."""
    try:
        return [pickle.dumps(thing).decode("latin-1")]
    except Exception:  # locks, connections, models
        return []


@contextmanager
def all_logs() -> Iterator[list[str]]:
    """Yield the formatted records of all loggers of the process, from DEBUG on, with tracebacks.

    The logger of pymilvus keeps its level: users who lower it want to see every call.
    """
    texts: list[str] = []
    formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
    handler = logging.Handler(logging.NOTSET)
    handler.emit = lambda record: texts.append(formatter.format(record))  # type: ignore[method-assign]
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] != "pymilvus"]
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    before = [(logger, logger.level, logger.propagate, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate, logger.disabled = True, False
    logging.getLogger().addHandler(handler)
    try:
        yield texts
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level, propagate, disabled in before:
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, disabled
