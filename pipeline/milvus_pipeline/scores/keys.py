"""What a score is found by: all that it hangs on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import PydanticSerializationError, to_jsonable_python

from milvus_pipeline.config.registry import registry
from milvus_pipeline.errors import StageError
from milvus_pipeline.files.plain import plain
from milvus_pipeline.text import error_text

if TYPE_CHECKING:
    from milvus_pipeline.reranker import Reranker

_HALF: Final = 12  # bytes of either half of a key
_GIVEN: Final = sys.stdlib_module_names | {"milvus_pipeline", "pydantic"}
"""Packages whose own classes make no scores."""


class Keys:
    """Makes the keys of one reranker's scores: 12 bytes of the query or list, 12 of the text or its place.

    The first half being the same for all texts of a query, they lie side by side in the file.

    Args:
        reranker: which can say what it works with.

    Raises:
        StageError: what it says is no plain data, or it cannot say it.
    """

    def __init__(self, reranker: Reranker) -> None:
        self.listwise = reranker.scores_lists
        self._reranker = _digest(_told(reranker))

    def of(self, query: str, texts: Sequence[str], digests: dict[str, bytes]) -> list[bytes]:
        """The key of each text.

        Args:
            query: that they are scored for.
            texts: in their order.
            digests: of texts that were met before; those of these texts are put there.
        """
        own = []
        for text in texts:
            digest = digests.get(text)
            if digest is None:
                digest = digests[text] = _digest(text.encode("utf-8", "surrogatepass"))
            own.append(digest)
        first = self._reranker + _digest(query.encode("utf-8", "surrogatepass"))
        if self.listwise:
            whole = _digest(first + b"".join(own))
            return [whole + place.to_bytes(_HALF, "big") for place in range(len(own))]
        first = _digest(first)
        return [first + digest for digest in own]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HALF).digest()


def _told(reranker: Reranker) -> bytes:
    """All that a reranker's scores hang on beside the texts."""
    cls = type(reranker)
    try:
        told = plain(
            {
                "class": f"{cls.__module__}.{cls.__qualname__}",
                "package": registry.version_of(cls),
                "source": reranker.written_in,
                "fields": reranker.model_dump(exclude=set(neutral_fields(cls))),
                "identity": reranker.identity(),
            },
            to_jsonable_python,
        )
        return json.dumps(told, sort_keys=True).encode()
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise StageError(
            f"cache: fields and identity() of {cls.__name__} must be plain data, by which scores are found again "
            f"({error_text(error)})",
            reason_code="config",
        ) from error


def neutral_fields(cls: type[Reranker]) -> frozenset[str]:
    """The fields of a class that no score hangs on: those that it and its bases name."""
    return frozenset().union(*(vars(base).get("score_neutral", ()) for base in cls.__mro__))


def source_of(cls: type) -> str:
    """A digest of what a class and its bases are written in: a plugin at work has no new version each time.

    That is the file of each, or its code where it stands in none (a prompt, a notebook). It has to be asked for when
    the class is made: the file may be another one later, while the class is what it was.
    """
    whole = hashlib.blake2b(digest_size=_HALF)
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in _GIVEN:
            whole.update(_digest(_content(base)))
    return whole.hexdigest()


def _content(cls: type) -> bytes:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if isinstance(file, str):
        with suppress(OSError):
            return Path(file).read_bytes()
    return "\n".join(_written(name, value) for name, value in vars(cls).items()).encode("utf-8", "surrogatepass")


def _written(name: str, value: Any) -> str:
    """What stands in a class under a name: a method's code, or a value that always reads the same; else the name."""
    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    code = getattr(inner, "__code__", None)
    if isinstance(code, CodeType):
        return f"{name} {_code(code)} {getattr(inner, '__defaults__', None)!r}"
    return f"{name} {value!r}" if isinstance(value, str | int | float | bytes) else name


def _code(code: CodeType) -> str:
    """The instructions with all that they name, without the place at which they stand."""
    constants = [_code(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
