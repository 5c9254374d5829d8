"""Stage types by name: from the entry-point group ``milvus_pipeline.stages`` and from ``@register``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from milvus_pipeline.errors import ConfigError
from milvus_pipeline.problems import suggestion
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text

GROUP = "milvus_pipeline.stages"

S = TypeVar("S", bound=type[Stage])


class Registry:
    """Finds stage classes by their type name. Entry points are read at the first look-up, loaded one by one."""

    def __init__(self, group: str = GROUP) -> None:
        self._group = group
        self._lock = threading.RLock()
        self._classes: dict[str, type[Stage]] = {}
        self._points: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Callable[[S], S]:
        """Class decorator that registers a stage under ``name`` and sets its ``type``.

        Raises:
            ConfigError: the name is taken by another class.
        """

        def decorate(cls: S) -> S:
            if not name or name != name.strip():
                raise ConfigError(f"a stage type needs a name without blanks around it, not {name!r}")
            with self._lock:
                taken = self._classes.get(name)
                # A notebook cell that is run again defines the same class anew: that is no clash.
                if taken is not None and _origin(taken) != _origin(cls):
                    raise ConfigError(
                        f"the stage type {name!r} is already taken by {_origin(taken)}", place=str(_origin(cls))
                    )
                point = self._entry_points().get(name)
                if taken is None and point is not None and point.value != _origin(cls):
                    raise ConfigError(
                        f"the stage type {name!r} is already taken by {_said(point)}", place=str(_origin(cls))
                    )
                cls.type = name
                self._classes[name] = cls
            return cls

        return decorate

    def get(self, name: str) -> type[Stage]:
        """The class of a stage type.

        Raises:
            ConfigError: no stage has that name, two installed packages claim it, or its package cannot be imported.
        """
        with self._lock:
            if name not in self._classes:
                point = self._entry_points().get(name)
                if point is None:
                    raise ConfigError(f"no stage is named {name!r}", suggestion(name, self.names()))
                self._classes[name] = self._loaded(point)
            return self._classes[name]

    def names(self) -> list[str]:
        """All type names, sorted; loads none of the classes."""
        with self._lock:
            return sorted({*self._classes, *self._entry_points()})

    def version_of(self, cls: type[Stage]) -> str | None:
        """Name and version of the installed package that brings a stage; None where no package does."""
        with self._lock:
            point = self._entry_points().get(cls.type)
        if point is None or point.dist is None or point.value != _origin(cls):
            return None
        return f"{point.dist.name} {point.dist.version}"

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._points is None:
            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=self._group):
                other = found.get(point.name)
                if other is not None and other.value != point.value:
                    raise ConfigError(
                        f"the stage type {point.name!r} is claimed by {_said(other)} and by {_said(point)}",
                        "uninstall one of the two packages",
                    )
                found[point.name] = point
            self._points = found
        return self._points

    def _loaded(self, point: EntryPoint) -> type[Stage]:
        try:
            cls = point.load()
        except Exception as error:
            raise ConfigError(
                f"the stage {point.name!r} of {_said(point)} cannot be imported: {error_text(error)}"
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Stage)):
            raise ConfigError(f"the stage {point.name!r} of {_said(point)} is not a subclass of Stage")
        if not cls.__dict__.get("type"):
            cls.type = point.name
        if cls.type != point.name:
            raise ConfigError(
                f"the stage {point.name!r} of {_said(point)} calls itself {cls.type!r}",
                "make its `type` and the name of its entry point the same",
            )
        return cls


def _origin(cls: type[Stage]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _said(point: EntryPoint) -> str:
    distribution = point.dist.name if point.dist is not None else "an unknown package"
    return f"{point.value} ({distribution})"


registry = Registry()
"""The registry that configurations are read with."""

register = registry.register
