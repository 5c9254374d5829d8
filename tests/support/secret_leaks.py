"""Finding what should be nowhere: secrets and texts, as they stand and encoded, in all that a program says."""

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
    """The text as it stands, escaped, and inside of base64 and hexadecimal digits, wherever these begin."""
    data = text.encode()
    found = {text, json.dumps(text)[1:-1], repr(text)[1:-1], quote(text, safe=""), data.hex()}
    for lead in range(3):
        packed = base64.b64encode(b"\0" * lead + data).decode()
        inner = packed[4 if lead else 0 : len(packed) - 4]  # without the signs that depend on what stands beside it
        found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return found


def leaked(canaries: Iterable[str], said: Iterable[Any]) -> list[str]:
    """Those of the canaries that are anywhere in what was said, with some of what stands round them."""
    found = []
    whole = "\n".join(each if isinstance(each, str) else str(each) for each in said)
    for canary in canaries:
        for spelling in spellings(canary):
            at = whole.find(spelling)
            if at >= 0:
                found.append(f"{canary!r} in {whole[max(0, at - 200) : at + len(spelling) + 60]!r}")
                break
    return found


def printed(error: BaseException) -> list[str]:
    """All that an exception may be printed as: alone, in a traceback with what caused it, by its attributes."""
    said = [str(error), repr(error), repr(error.args), "".join(traceback.format_exception(error))]
    return [*said, repr(vars(error)), *pickled(error)]


def shown(stage: Stage) -> list[str]:
    """All that a stage may be printed as."""
    config = stage.config()
    said = [repr(stage), str(stage), repr(stage.model_dump()), stage.model_dump_json(), json.dumps(config)]
    return [*said, yaml.safe_dump(config), *pickled(stage)]


def pickled(thing: Any) -> list[str]:
    """What is in its pickle, if it has one."""
    try:
        return [pickle.dumps(thing).decode("latin-1")]
    except Exception:  # locks, connections, models: then nothing is written down
        return []


@contextmanager
def all_logs() -> Iterator[list[str]]:
    """Every record of every logger of the process, from DEBUG on, formatted with its traceback.

    But the logger of pymilvus keeps its own level: who lowers that one asks to see every call.
    """
    said: list[str] = []
    formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
    handler = logging.Handler(logging.NOTSET)
    handler.emit = lambda record: said.append(formatter.format(record))  # type: ignore[method-assign]
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] != "pymilvus"]
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    before = [(logger, logger.level, logger.propagate, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate, logger.disabled = True, False
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level, propagate, disabled in before:
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, disabled
