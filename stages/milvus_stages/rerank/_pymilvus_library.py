"""The PyMilvus model library: its rerank functions by name, and no packages installed by it on the side."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from milvus_pipeline import StageError
from milvus_pipeline.plugin import require, suggestion
from milvus_stages.local.files import Origin, locate_here
from milvus_stages.milvus.client.server import pymilvus_for

_EXTRA: Final = "pymilvus-model"
_PICKLES: Final = ("*.bin",)  # which some of its functions load

LOCAL: Final = frozenset({"BGERerankFunction", "CrossEncoderRerankFunction"})
"""The functions that run a model on this machine."""

PAIRWISE: Final = LOCAL | {"CohereRerankFunction", "VoyageRerankFunction", "TEIRerankFunction", "JevRerankFunction"}
"""The functions that are known to read each document by itself."""


def exported(function: str, wanted_by: str) -> Callable[..., Any]:
    """The rerank function of that name.

    Raises:
        StageError: the library is not installed, or has none of that name.
    """
    pymilvus_for(wanted_by)
    try:
        library = require("pymilvus.model.reranker", extra=_EXTRA, wanted_by=wanted_by)
        base = require("pymilvus.model.base", extra=_EXTRA, wanted_by=wanted_by).BaseRerankFunction
        _stand_before_installer(require("pymilvus.model.utils", extra=_EXTRA, wanted_by=wanted_by))
    except ModuleNotFoundError as error:
        raise StageError(
            f"pymilvus.model needs the package {error.name!r}, which is not installed",
            f'install what it needs with: pip install "milvus-search-pipeline[{_EXTRA}]"',
            place=str(wanted_by),
        ) from error
    found = {name: getattr(library, name, None) for name in library.__all__}
    known = {name: own for name, own in found.items() if isinstance(own, type) and issubclass(own, base)}
    if function not in known:
        raise StageError(
            f"function: the PyMilvus model library has no {function!r}",
            suggestion(function, known),
            reason_code="config",
        )
    return known[function]


def library() -> str:
    """The library's name and version."""
    try:
        return f"pymilvus.model {version('pymilvus.model')}"
    except PackageNotFoundError:  # found by a path
        return "pymilvus.model"


def origin_of(function: str, found: Callable[..., Any], arguments: Mapping[str, Any]) -> Origin | None:
    """The files of the model of a function that runs one; None where it runs none, or they are not found."""
    if function not in LOCAL:
        return None
    parameter = inspect.signature(found).parameters.get("model_name")
    name = arguments.get("model_name", parameter.default if parameter else None)
    try:
        folder = locate_here(name, wanted_by=function) if isinstance(name, str) and name else None
        return None if folder is None else Origin(folder, _PICKLES)
    except StageError:
        return None


def check_names(function: str, found: Callable[..., Any], arguments: Collection[str]) -> None:
    """Check the names of arguments against those that the function takes.

    Raises:
        StageError: one is not known, or one is missing.
    """
    parameters = inspect.signature(found).parameters.values()
    named = [own for own in parameters if own.kind in (own.POSITIONAL_OR_KEYWORD, own.KEYWORD_ONLY)]
    if len(named) == len(parameters):  # else it takes any
        known = [own.name for own in named]
        for name in arguments:
            if name not in known:
                raise StageError(
                    f"{function} takes no such argument",
                    suggestion(name, known),
                    place=f"arguments.{name}",
                    reason_code="config",
                )
    for own in named:
        if own.default is own.empty and own.name not in arguments:
            raise StageError(f"arguments: {function} needs {own.name!r}", "add it", reason_code="config")


_ours: ContextVar[bool] = ContextVar("_ours", default=False)
_patching = threading.Lock()


@contextmanager
def without_installing() -> Iterator[None]:
    """Keep the library from running pip for a package that a function lacks: ModuleNotFoundError instead.

    What the rest of the process asks of the library is done as before. Importing the library installs nothing.
    """
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def _stand_before_installer(utils: Any) -> None:
    with _patching:
        install = getattr(utils, "prompt_install", None)
        if not isinstance(install, _Installer):
            utils.prompt_install = _Installer(install)


class _Installer:
    """Stands before the library's own installer, and turns our calls away."""

    def __init__(self, install: Callable[..., Any] | None) -> None:
        self._install = install

    def __call__(self, package: str, *arguments: Any, **options: Any) -> Any:
        if _ours.get() or self._install is None:
            raise ModuleNotFoundError(f"{package} is not installed", name=package)
        return self._install(package, *arguments, **options)
