"""Whether stages fit together: each has a name of its own, and gets what it needs from those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from milvus_pipeline.config.registry import Registry
from milvus_pipeline.errors import ConfigError, Problem, dotted
from milvus_pipeline.problems import kind_of, near_miss, suggestion
from milvus_pipeline.stage import Fallback, Stage


def check_names(stages: Iterable[Stage]) -> list[Problem]:
    """Problems with the names of a pipeline's stages: scores and reports are kept by name, so each must be its own."""
    seen: dict[str, str] = {}
    problems = []
    for path, stage in _with_paths(stages):
        if stage.name in seen:
            text = f"{stage.name!r} is also the name of {seen[stage.name]}"
            problems.append(Problem((*path, "name"), text, "give one of them another `name`"))
        seen.setdefault(stage.name, dotted(path))
    return problems


def _with_paths(stages: Iterable[Stage]) -> Iterator[tuple[tuple[str | int, ...], Stage]]:
    """Every stage and every fallback, with its place in the configuration."""
    for position, stage in enumerate(stages):
        path: tuple[str | int, ...] = ("stages", position)
        for member in stage.family():
            yield path, member
            path = (*path, "on_error", "fallback")


def check_chain(stages: Sequence[Stage]) -> list[Problem]:
    """Problems with the order of a pipeline's stages; empty where every stage gets what it needs."""
    problems = []
    # Query text and vector can come with the query itself, so their lack shows only when a query is run.
    have = {"query_text", "vector"}
    for path, stage in _with_paths(stages):
        position = int(path[1])
        missing_here = sorted(stage.requires() - have)
        for missing in missing_here:
            if missing == "text" and "hits" in missing_here:
                continue  # without hits there is no text either: one problem, said once
            givers = [f"stages[{i}] ({s.name})" for i, s in enumerate(stages) if missing in _given(s)]
            names = [member.name for earlier in stages[:position] for member in earlier.family()]
            what, next_step = _lack(missing, givers, names)
            problems.append(Problem(path, f"{stage.name} {what}", next_step))
        replaced = stages[position]
        if stage is not replaced and (lacking := sorted(replaced.provides() - stage.provides())):
            text = f"cannot replace {replaced.name}, since it does not give {' and '.join(map(repr, lacking))}"
            problems.append(Problem(path, f"{stage.name} {text}"))
        if stage.fallback is None:
            have |= _given(replaced)
    return problems


def _given(stage: Stage) -> frozenset[str]:
    # Which stages score, their types do not say; that a stage of the name runs before is what can be checked here.
    return stage.provides() | {f"score:{member.name}" for member in stage.family()}


def _lack(missing: str, givers: list[str], names: list[str]) -> tuple[str, str]:
    if missing.startswith("score:"):
        name = missing.removeprefix("score:")
        return f"cuts on the score of {name!r}, but no stage before it has that name", suggestion(name, names)
    if givers:
        return f"needs {missing!r}, which {givers[0]} gives only later", "move that stage before this one"
    if missing == "hits":
        step = "put a retrieval stage such as milvus_search first"
        return "needs hits, but no stage before it retrieves any", step
    if missing == "text":
        step = "set `text_field` of the retrieval stage"
        return "needs the text of the hits, but no stage before it brings any", step
    return f"needs {missing!r}, which no stage before it gives", ""


def stage_of(data: object, place: tuple[str | int, ...], stage_types: Registry) -> Stage | list[Problem]:
    """The stage that the data describes, or what is wrong with it.

    Args:
        data: ``{"type": "truncate", "top_k": 5}``, as it was read.
        place: where it stands in the configuration; the places of problems begin with it.
        stage_types: where the type is looked up.
    """
    if not isinstance(data, dict):
        return [Problem(place, "must be a mapping with a `type`, such as {type: truncate, top_k: 5}")]
    kind = data.get("type")
    if not isinstance(kind, str):
        if kind is not None:
            return [Problem((*place, "type"), f"must be the name of a stage, got {kind_of(kind)}")]
        near = next((key for key in data if near_miss(str(key), ["type"])), None)
        hint = f"did you mean 'type' by {near!r}?" if near else "`milvus-pipeline stages` lists them"
        return [Problem(place, "has no `type`, the name of its stage", hint)]
    try:
        cls = stage_types.get(kind)
    except ConfigError as error:
        return [Problem((*place, "type"), error.what, error.next_step)]
    fields = {str(key): value for key, value in data.items() if key != "type"}
    on_error, found = on_error_of(fields.get("on_error"), (*place, "on_error"), stage_types)
    if on_error is not None:
        fields["on_error"] = on_error
    made = made_of(cls, fields, place)
    return made if isinstance(made, Stage) and not found else [*(made if isinstance(made, list) else ()), *found]


def on_error_of(data: object, place: tuple[str | int, ...], stage_types: Registry) -> tuple[object, list[Problem]]:
    """What ``on_error`` says, a fallback's data made into its stage, and what is wrong with that data."""
    if not (isinstance(data, dict) and set(data) == {"fallback"}) or isinstance(data["fallback"], Stage):
        return data, []
    fallback = stage_of(data["fallback"], (*place, "fallback"), stage_types)
    return (Fallback(fallback), []) if isinstance(fallback, Stage) else ("skip", fallback)


def made_of(cls: type[Stage], fields: dict[str, object], place: tuple[str | int, ...]) -> Stage | list[Problem]:
    """A stage of this class with these fields, or what is wrong with them."""
    try:
        return cls(**fields)  # type: ignore[arg-type]
    except ConfigError as error:
        problems = error.problems or (Problem((), error.what, error.next_step),)
        return [problem.under(place) for problem in problems]
