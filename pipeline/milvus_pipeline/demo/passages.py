"""Passages that exist on every machine: the documentation that Python itself ships.

Two sources: the language reference in ``pydoc_data.topics`` and the docstrings of the standard library. Python
sources are parsed, never imported, because importing some modules of the library has side effects.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

MOST = 3000
WORDS = 120
FEWEST_WORDS = 12

# Written in C or frozen, and without side effects when imported: their docstrings are read from the live objects.
COMPILED = ("itertools", "math", "time", "sys", "gc", "array", "binascii", "zlib", "select", "errno")

MODULES = """
argparse ast asyncio base64 bisect calendar codecs collections concurrent configparser contextlib copy csv
ctypes dataclasses datetime decimal difflib dis doctest email enum fileinput fnmatch fractions functools getpass
gettext glob graphlib gzip hashlib heapq hmac html http imaplib inspect io ipaddress json keyword linecache
locale logging mailbox mimetypes multiprocessing operator optparse os pathlib pdb pickle pkgutil platform
plistlib pprint profile queue random re reprlib sched secrets selectors shelve shlex shutil signal site smtplib
socket socketserver sqlite3 ssl stat statistics string struct subprocess symtable tarfile tempfile textwrap
threading timeit tokenize trace traceback tracemalloc types typing unittest urllib uuid venv warnings wave
weakref webbrowser xml xmlrpc zipapp zipfile zoneinfo
""".split()  # noqa: SIM905 - a column of names, one a line, would fill two screens


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | Definition


class Passage(NamedTuple):
    """A piece of documentation: a stable id such as ``shutil.rmtree#1``, its subject, and its text."""

    id: str
    title: str
    text: str


def passages() -> list[Passage]:
    """Return at most ``MOST`` passages of about ``WORDS`` words, the same on every run of one Python version."""
    return list(islice(_read_passages(), MOST))


def _read_passages() -> Iterator[Passage]:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for title, document in (*_language_topics(topics), *_compiled_docs(), *_source_docs()):
        for number, text in enumerate(_split(document), start=1):
            passage = Passage(f"{title}#{number}", title, text)
            # Many classes repeat a docstring, and a function may be defined once for each platform.
            if seen.isdisjoint((passage.id, text)):
                seen.update((passage.id, text))
                yield passage


def _language_topics(topics: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(topics.keys() - {"compound"}):  # repeats the topics of the single statements
        yield f"language.{name}", topics[name]


def _compiled_docs() -> Iterator[tuple[str, str]]:
    for module in (builtins, *map(importlib.import_module, COMPILED)):
        yield from _live_docs(module)


def _live_docs(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not callable(value):
            continue
        yield f"{module.__name__}.{name}", inspect.getdoc(value) or ""
        if inspect.isclass(value) and not issubclass(value, BaseException):
            for part, method in sorted(vars(value).items()):
                if not part.startswith("_"):
                    yield f"{module.__name__}.{name}.{part}", inspect.getdoc(method) or ""


def _source_docs() -> Iterator[tuple[str, str]]:
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
            yield from _tree_docs(tree, name)


def _tree_docs(node: Documented, name: str) -> Iterator[tuple[str, str]]:
    yield name, ast.get_docstring(node) or ""
    for child in _definitions(node.body):
        if not child.name.startswith("_"):
            yield from _tree_docs(child, f"{name}.{child.name}")


def _definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """Yield the classes and functions of a body, including those that it defines for one platform only."""
    for child in body:
        if isinstance(child, Definition):
            yield child
        elif isinstance(child, ast.If | ast.Try):
            yield from _definitions([*child.body, *child.orelse])


def _split(document: str) -> Iterator[str]:
    """Yield the document's paragraphs, packed into passages of about ``WORDS`` words."""
    gathered: list[str] = []
    for paragraph in re.split(r"\n\s*\n", document):
        words = paragraph.split()
        if gathered and len(gathered) + len(words) > WORDS:
            yield from _long_enough(gathered)
            gathered = []
        gathered += words
        while len(gathered) > 2 * WORDS:  # a grammar or a table without a blank line
            yield from _long_enough(gathered[:WORDS])
            gathered = gathered[WORDS:]
    yield from _long_enough(gathered)


def _long_enough(words: list[str]) -> Iterator[str]:
    if len(words) >= FEWEST_WORDS:
        yield " ".join(words)
