"""A pipeline's configuration as data: read from YAML or a mapping, checked, and written back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.config.build import check_stages, stage_of
from milvus_pipeline.config.collection import CollectionSpec
from milvus_pipeline.config.registry import registry
from milvus_pipeline.config.sweep import expand
from milvus_pipeline.config.yaml import Source, parse_yaml, read_yaml
from milvus_pipeline.errors import Problem
from milvus_pipeline.problems import problems_of
from milvus_pipeline.stage import Stage


class PipelineConfig(BaseModel):
    """The top level of a configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    name: Annotated[str, Field(min_length=1, description="Name in messages and in the tag of a TREC run.")] = "pipeline"
    timeout: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Seconds that a query may take through all stages.")
    ] = None
    stages: Annotated[list[Any], Field(min_length=1, description="The stages, in the order they run.")]
    collection: Annotated[
        CollectionSpec | None, Field(description="The collection that `ingest` makes for this pipeline.")
    ] = None
    sweep: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1)]] | None,
        Field(
            min_length=1,
            description="Variants that `evaluate` compares: values to try for each place in the stages, in all "
            "combinations. A place is STAGE.FIELD (milvus_search.limit), with further keys if the field is a "
            "mapping (milvus_search.params.nprobe), or STAGE alone, whose values are whole stages, or null for none.",
        ),
    ] = None


def read_config(path: str | Path) -> PipelineConfig:
    """Read the configuration in a YAML file, build its stages, and check how they fit together.

    Raises:
        ConfigError: with every problem, each on its own line of the message with file, place and line.
    """
    return build(read_yaml(path))


def parse_config(text: str, origin: str = "<yaml>") -> PipelineConfig:
    """Do what ``read_config`` does for a string."""
    return build(parse_yaml(text, origin))


def from_mapping(data: Mapping[str, Any], origin: str = "<config>") -> PipelineConfig:
    """Do what ``read_config`` does for plain data."""
    return build(Source(dict(data), origin))


def build(source: Source) -> PipelineConfig:
    """Turn parsed data into a checked configuration."""
    problems: list[Problem] = []
    config = None
    try:
        config = PipelineConfig.model_validate(source.data)
    except ValidationError as error:
        problems = problems_of(error, PipelineConfig)
    given = source.data.get("stages")
    stages: list[Stage] = []
    for position, data in enumerate(given if isinstance(given, list) else []):
        built = stage_of(data, ("stages", position))
        if isinstance(built, Stage):
            stages.append(built)
        else:
            problems.extend(built)
    # A variable without a value is one problem, whatever else is wrong with the place it is in.
    unset = {problem.path for problem in source.problems}
    problems = [*source.problems, *(problem for problem in problems if problem.path not in unset)]
    # Whether stages fit together can be checked only if each of them is right.
    problems = problems or check_stages(stages)
    if not problems and config is not None and config.sweep is not None:
        _, problems = expand(stages, config.sweep)
    if problems or config is None:
        raise source.error(sorted(problems, key=source.line))
    return config.model_copy(update={"stages": stages})


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML that ``parse_config`` reads back to the same."""
    return yaml.dump(_escaped(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes rare line breaks as escapes in double quotes; unescaped they would be read as blanks."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        style = '"' if any(sign in text for sign in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def _escaped(data: Any) -> Any:
    """Return the data with ``$`` doubled in every string, so that reading it back finds no variable."""
    if isinstance(data, str):
        return data.replace("$", "$$")
    if isinstance(data, Mapping):
        return {key: _escaped(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_escaped(value) for value in data]
    return data


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration file, with every registered stage, for editors."""
    schema = PipelineConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    stages = []
    for kind in registry.names():
        own = registry.get(kind).model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"] = {
            "type": {"const": kind, "description": "The stage's registered type."},
            **own["properties"],
        }
        own["required"] = ["type", *own.get("required", [])]
        _add_aliases(own, registry.get(kind))
        # "raise", "skip", or a stage, which the schema of a single stage cannot refer to.
        on_error = own["properties"]["on_error"]
        on_error["anyOf"] = [{"enum": on_error.pop("enum")}, {"$ref": "#/$defs/fallback"}]
        definitions[f"stage_{kind}"] = own
        stages.append({"$ref": f"#/$defs/stage_{kind}"})
    schema["properties"]["stages"]["items"] = {"oneOf": stages}
    # Only whole stages at a place without a dot; a name with dots in it is taken for a field.
    values = {"type": "array", "items": {"oneOf": [*stages, {"type": "null"}]}, "minItems": 1}
    sweep = next(part for part in schema["properties"]["sweep"]["anyOf"] if part.get("type") == "object")
    sweep["patternProperties"] = {r"^[^.]+$": values}
    definitions["fallback"] = {
        "type": "object",
        "properties": {"fallback": {"description": "The stage that replaces it.", "oneOf": stages}},
        "required": ["fallback"],
        "additionalProperties": False,
    }
    for part in (schema, *definitions.values()):
        properties = part.get("properties", {})
        part["properties"] = {name: _or_variable(value) for name, value in properties.items()}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Milvus search pipeline"
    return schema


_VARIABLE = {"type": "string", "pattern": r"\$\{", "description": "A value from the environment."}


def _or_variable(value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value that allows ``${VAR}`` in place of a number or a boolean."""
    kinds = {part.get("type") for part in (value, *value.get("anyOf", []))}
    if not kinds & {"integer", "number", "boolean"} or "string" in kinds:
        return value
    about: dict[str, Any] = {key: value[key] for key in ("title", "description", "default") if key in value}
    alternatives = value.get("anyOf") or [{key: part for key, part in value.items() if key not in about}]
    return {**about, "anyOf": [*alternatives, _VARIABLE]}


def _add_aliases(schema: dict[str, Any], cls: type[Stage]) -> None:
    """Add properties for the aliases of fields, which pydantic's own schema leaves out."""
    for name, field in cls.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            for alias in field.validation_alias.choices:
                schema["properties"].setdefault(str(alias), schema["properties"][name])
