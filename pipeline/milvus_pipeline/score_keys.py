"""What a score is found by: all that it hangs on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import PydanticSerializationError, to_jsonable_python

from milvus_pipeline.errors import StageError, told
from milvus_pipeline.registry import registry

if TYPE_CHECKING:
    from milvus_pipeline.reranker import Reranker

_HALF: Final = 12  # bytes of either half of a key


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
        plain = _plain(
            {
                "class": f"{cls.__module__}.{cls.__qualname__}",
                "package": registry.version_of(cls),
                "source": _source(cls),
                "fields": reranker.model_dump(exclude=set(neutral_fields(cls))),
                "identity": reranker.identity(),
            }
        )
        return json.dumps(plain, sort_keys=True).encode()
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise StageError(
            f"cache: fields and identity() of {cls.__name__} must be plain data, by which scores are found again "
            f"({told(error)})",
            reason_code="config",
        ) from error


def neutral_fields(cls: type[Reranker]) -> frozenset[str]:
    """The fields of a class that no score hangs on: those that it and its bases name."""
    return frozenset().union(*(vars(base).get("score_neutral", ()) for base in cls.__mro__))


def _source(cls: type[Reranker]) -> str | None:
    """A digest of the file that the class stands in: a plugin that is being written has no new version each time."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    try:
        return _digest(Path(file).read_bytes()).hex() if isinstance(file, str) else None
    except OSError:
        return None


def _plain(value: Any) -> Any:
    """The value as JSON has it; a set in an order that is the same in every process, numbers exactly."""
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(own) for own in value), key=json.dumps)
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return value if isinstance(value, str | int | float | bool | None) else to_jsonable_python(value)
