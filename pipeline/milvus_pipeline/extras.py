"""Optional dependencies: import them when a stage opens, and name the install command when they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from milvus_pipeline.errors import StageError

DISTRIBUTION = "milvus-search-pipeline"


def require(module: str, *, extra: str | None, wanted_by: str) -> Any:
    """Import ``module`` and return it.

    Args:
        module: its full name.
        extra: the extra of this distribution that brings it; None where every installation has it.
        wanted_by: who needs it, to lead the message.

    Raises:
        StageError: the module is not installed; the message is the exact pip command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing != module.partition(".")[0]:
            raise  # installed, but something that it needs itself is not: that is another fault
        wanted = DISTRIBUTION if extra is None else f"{DISTRIBUTION}[{extra}]"
        raise StageError(
            f"{wanted_by} needs the package {error.name!r}, which is not installed",
            f'install it with: pip install "{wanted}"',
        ) from error
