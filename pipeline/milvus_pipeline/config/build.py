"""From data to stages that fit together: each has a unique name, and gets what it needs from those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from milvus_pipeline.config.registry import registry
from milvus_pipeline.config.yaml import KeyPath
from milvus_pipeline.errors import ConfigError, Problem, dotted
from milvus_pipeline.problems import kind_of, suggestion
from milvus_pipeline.stage import Fallback, Stage


def paths_of(stages: Iterable[Stage]) -> Iterator[tuple[KeyPath, Stage]]:
    """Yield every stage and every fallback, with its place in the configuration."""
    for position, stage in enumerate(stages):
        path: KeyPath = ("stages", position)
        for member in stage.family():
            yield path, member
            path = (*path, "on_error", "fallback")


def check_stages(stages: Sequence[Stage]) -> list[Problem]:
    """Return what keeps stages from being a pipeline: duplicate names, and needs that no earlier stage meets."""
    seen: dict[str, str] = {}
    problems = []
    # Text and vector can come with the query itself, so whether they are missing shows only when a query is run.
    have = {"query_text", "vector"}
    for path, stage in paths_of(stages):
        position = int(path[1])
        if stage.name in seen:
            what = f"{stage.name!r} is also the name of {seen[stage.name]}"
            problems.append(Problem((*path, "name"), what, "give one of them another `name`"))
        missing_here = sorted(stage.requires() - have)
        for missing in missing_here:
            if missing == "text" and "hits" in missing_here:
                continue  # without hits there is no text either: one problem, reported once
            givers = [f"stages[{i}] ({s.name})" for i, s in enumerate(stages) if missing in _given(s)]
            what, next_step = _missing_text(missing, givers, seen)
            problems.append(Problem(path, f"{stage.name} {what}", next_step))
        replaced = stages[position]
        if stage is not replaced and (lacking := sorted(replaced.provides() - stage.provides())):
            what = f"cannot replace {replaced.name}, since it does not give {' and '.join(map(repr, lacking))}"
            problems.append(Problem(path, f"{stage.name} {what}"))
        if stage.fallback is None:
            have |= _given(replaced)
        seen.setdefault(stage.name, dotted(path))
    return problems


def _given(stage: Stage) -> frozenset[str]:
    # A stage's type does not say whether it scores; what can be checked is that a stage of this name runs before.
    return stage.provides() | {f"score:{member.name}" for member in stage.family()}


def _missing_text(missing: str, givers: Sequence[str], names: Iterable[str]) -> tuple[str, str]:
    if missing.startswith("score:"):
        name = missing.removeprefix("score:")
        return f"cuts on the score of {name!r}, but no stage before it has that name", suggestion(name, names)
    if givers:
        return f"needs {missing!r}, which {givers[0]} gives only later", "move that stage before this one"
    steps = {
        "hits": "put a retrieval stage such as milvus_search first",
        "text": "set `text_field` of the retrieval stage",
    }
    return f"needs {missing!r}, which no stage before it gives", steps.get(missing, "")


def stage_of(data: object, path: KeyPath, find: Callable[[str], type[Stage]] = registry.get) -> Stage | list[Problem]:
    """Return the stage that the data describes, or what is wrong with it.

    Args:
        data: ``{"type": "truncate", "top_k": 5}``, as it was read.
        path: where it is in the configuration; the paths of problems begin with it.
        find: returns the class of a stage type; a ConfigError if there is none.
    """
    if not isinstance(data, dict):
        return [Problem(path, "must be a mapping with a `type`, such as {type: truncate, top_k: 5}")]
    kind = data.get("type")
    if not isinstance(kind, str):
        if kind is not None:
            return [Problem((*path, "type"), f"must be the name of a stage, got {kind_of(kind)}")]
        return [Problem(path, "has no `type`, the name of its stage", "`milvus-pipeline stages` lists them")]
    try:
        cls = find(kind)
    except ConfigError as error:
        return [Problem((*path, "type"), error.what, error.next_step)]
    fields = {str(key): value for key, value in data.items() if key != "type"}
    problems: list[Problem] = []
    on_error = fields.get("on_error")
    if isinstance(on_error, dict) and set(on_error) == {"fallback"} and not isinstance(on_error["fallback"], Stage):
        fallback = stage_of(on_error["fallback"], (*path, "on_error", "fallback"), find)
        if isinstance(fallback, Stage):
            fields["on_error"] = Fallback(fallback)
        else:
            problems = fallback
            del fields["on_error"]  # so that the other fields are checked, too
    try:
        stage = cls(**fields)
    except ConfigError as error:
        found = error.problems or (Problem((), error.what, error.next_step),)
        return [*(problem.under(path) for problem in found), *problems]
    return problems or stage
