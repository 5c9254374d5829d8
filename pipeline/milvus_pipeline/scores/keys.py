"""The keys of scores: digests of everything that a score depends on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_jsonable_python

from milvus_pipeline.errors import StageError
from milvus_pipeline.text import error_text

_HALF: Final = 12  # bytes of either half of a key
_FRAMEWORK: Final = sys.stdlib_module_names | {"milvus_pipeline", "pydantic"}
"""Packages whose classes compute no scores themselves."""


class Keys:
    """Makes the keys of one reranker's scores: 12 bytes for the query or list, 12 for the text or its place.

    All texts of a query share the first half, so that they are neighbours in the file.

    Args:
        source: what the scores depend on beside the texts, as plain data.
        name: of the reranker's class, for messages.
        listwise: whether the score of a text depends on the other texts of its list, or on their order.

    Raises:
        StageError: ``source`` is not plain data.
    """

    def __init__(self, source: Mapping[str, Any], name: str, *, listwise: bool = False) -> None:
        self.listwise = listwise
        try:
            self._source = _digest(_json(source).encode())
        except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
            raise StageError(
                f"the fields and identity() of {name} must be plain data, as scores are found by them "
                f"({error_text(error)})",
                place="cache",
                reason_code="config",
            ) from error

    def of(self, query: str, texts: Sequence[str], digests: dict[str, bytes]) -> list[bytes]:
        """Return the key of each text.

        Args:
            query: the texts are scored for it.
            texts: in their order.
            digests: of texts met before; those of these texts are added.
        """
        own = []
        for text in texts:
            digest = digests.get(text)
            if digest is None:
                digest = digests[text] = _digest(text.encode("utf-8", "surrogatepass"))
            own.append(digest)
        first = self._source + _digest(query.encode("utf-8", "surrogatepass"))
        if self.listwise:
            whole = _digest(first + b"".join(own))
            return [whole + place.to_bytes(_HALF, "big") for place in range(len(own))]
        first = _digest(first)
        return [first + digest for digest in own]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HALF).digest()


def source_digest(cls: type) -> str:
    """Return a digest of the code of a class and its bases: a plugin under development has no new version each time.

    It covers the file of each, or its code if it is in none (a prompt, a notebook). Make it together with the class:
    later the file may be another, while the class is what it was.
    """
    whole = hashlib.blake2b(digest_size=_HALF)
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in _FRAMEWORK:
            whole.update(_digest(_content(base)))
    return whole.hexdigest()


def _content(cls: type) -> bytes:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if isinstance(file, str):
        with suppress(OSError):
            return Path(file).read_bytes()
    return "\n".join(_member(name, value) for name, value in vars(cls).items()).encode("utf-8", "surrogatepass")


def _member(name: str, value: Any) -> str:
    """A method's code, or a value that has the same repr in each process; else only the member's name."""
    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    code = getattr(inner, "__code__", None)
    if isinstance(code, CodeType):
        return f"{name} {_code(code)} {getattr(inner, '__defaults__', None)!r}"
    return f"{name} {value!r}" if isinstance(value, str | int | float | bytes) else name


def _code(code: CodeType) -> str:
    """The instructions and all that they refer to, without line numbers."""
    constants = [_code(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """What ``json`` cannot write, as plain data; a set in an order that is the same in every process."""
    return sorted(map(_json, value)) if isinstance(value, set | frozenset) else to_jsonable_python(value)
