"""Optional dependencies: imported when a stage opens; a missing one is reported with its install command."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from milvus_pipeline.errors import StageError

DISTRIBUTION = "milvus-search-pipeline"


def require(module: str, *, extra: str | None, wanted_by: str) -> Any:
    """Import ``module`` and return it.

    Args:
        module: its full name.
        extra: the extra of this distribution that installs it; None if every installation has it.
        wanted_by: what needs it, for the message.

    Raises:
        StageError: the module is not installed; the message has the exact pip command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing != module.partition(".")[0]:
            raise  # it is installed, but a dependency of it is not: another fault
        wanted = DISTRIBUTION if extra is None else f"{DISTRIBUTION}[{extra}]"
        raise StageError(
            f"{wanted_by} needs the package {error.name!r}, which is not installed",
            f'install it with: pip install "{wanted}"',
        ) from error
