"""Stage types by name, from the entry-point group ``milvus_pipeline.stages`` and from ``@register``."""

from __future__ import annotations

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
    """Finds stage classes by type name. Entry points are read at the first look-up, and loaded one by one."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Stage]] = {}
        self._points: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Callable[[S], S]:
        """Return a class decorator that registers a stage under ``name`` and sets its ``type``.

        Raises:
            ConfigError: another class has the name.
        """

        def decorate(cls: S) -> S:
            if not name or name != name.strip():
                raise ConfigError(f"a stage type needs a name without blanks around it, got {name!r}")
            taken, point = self._classes.get(name), self._entry_points().get(name)
            # A notebook cell that is run again defines the same class again, which is not a clash.
            holder = _origin(taken) if taken is not None else point.value if point is not None else _origin(cls)
            if holder != _origin(cls):
                raise ConfigError(f"the stage type {name!r} is already taken by {holder}", place=_origin(cls))
            cls.type = name
            self._classes[name] = cls
            return cls

        return decorate

    def get(self, name: str) -> type[Stage]:
        """Return the class of a stage type.

        Raises:
            ConfigError: no stage has that name, two installed packages claim it, or its package cannot be imported.
        """
        if name not in self._classes:
            point = self._entry_points().get(name)
            if point is None:
                raise ConfigError(f"no stage is named {name!r}", suggestion(name, self.names()))
            self._classes[name] = self._load(point)
        return self._classes[name]

    def names(self) -> list[str]:
        """Return all type names, sorted. Loads none of the classes."""
        return sorted({*self._classes, *self._entry_points()})

    def package_of(self, cls: type[Stage]) -> tuple[str, str] | None:
        """Return name and version of the installed package that a stage is from; None if it is not from one."""
        point = self._entry_points().get(cls.type)
        if point is None or point.dist is None or point.value != _origin(cls):
            return None
        return point.dist.name, point.dist.version

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._points is None:
            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=GROUP):
                other = found.get(point.name)
                if other is not None and other.value != point.value:
                    raise ConfigError(
                        f"the stage type {point.name!r} is claimed by {_point_text(other)} and by {_point_text(point)}",
                        "uninstall one of the two packages",
                    )
                found[point.name] = point
            self._points = found
        return self._points

    def _load(self, point: EntryPoint) -> type[Stage]:
        stage = f"the stage {point.name!r} of {_point_text(point)}"
        try:
            cls = point.load()
        except Exception as error:
            raise ConfigError(f"{stage} cannot be imported: {error_text(error)}") from error
        if not (isinstance(cls, type) and issubclass(cls, Stage)):
            raise ConfigError(f"{stage} is not a subclass of Stage")
        if not cls.__dict__.get("type"):
            cls.type = point.name
        if cls.type != point.name:
            step = "make its `type` and the name of its entry point the same"
            raise ConfigError(f"{stage} has the type {cls.type!r}", step)
        return cls


def _origin(cls: type[Stage]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _point_text(point: EntryPoint) -> str:
    distribution = point.dist.name if point.dist is not None else "an unknown package"
    return f"{point.value} ({distribution})"


registry = Registry()
"""The registry that configurations are read with."""

register = registry.register
