"""The configuration of a search, which everything below the stage works from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from milvus_pipeline import BreakerSettings, ConfigError, RetrySettings
from milvus_pipeline.plugin import Stage
from milvus_stages.milvus import filters
from milvus_stages.milvus.client.server import check_uri, is_https, is_lite
from milvus_stages.milvus.client.tls import TLS
from milvus_stages.milvus.params import check_params, parse_numbers
from milvus_stages.privacy.secrets import check_variable, environment

MAX_WINDOW = 16384
"""Milvus's bound on ``limit + offset``, and on the queries of one call. Milvus Lite has none; we apply it to both."""


def _path_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class SearchSettings(Stage):
    """The fields of ``milvus_search`` with their checks: a stage without its work, so that helpers need no more."""

    uri: Annotated[str, BeforeValidator(_path_text), AfterValidator(check_uri)] = "./milvus.db"
    """Server (http, https, tcp or unix), or a path that ends in .db for Milvus Lite."""

    token_env: Annotated[str, AfterValidator(check_variable)] | None = "MILVUS_TOKEN"  # noqa: S105 - the variable's name
    """Environment variable that holds the token: user:password, or an API key. May be unset."""

    tls: TLS | None = None
    """CA, client certificate and name of an https:// server, as files."""

    db_name: str = ""
    """Database on the server; the default database if empty."""

    collection: Annotated[str, Field(min_length=1)]
    """The collection to search."""

    anns_field: str | None = None
    """The vector field to search; by default the collection's only one."""

    index_type: Annotated[str, Field(min_length=1)] = "IVF_FLAT"
    """Type of the field's index. AUTOINDEX accepts any."""

    metric_type: Literal["IP", "COSINE", "L2"] = "IP"
    """Metric that the index was built with."""

    params: Annotated[dict[str, Any], AfterValidator(parse_numbers)] = {}
    """Search parameters of the index, such as nprobe (16 by default for IVF) or ef, and radius and range_filter."""

    limit: Annotated[int, Field(ge=1, le=MAX_WINDOW)] = 10
    """Hits to retrieve for each query."""

    offset: Annotated[int, Field(ge=0, lt=MAX_WINDOW)] = 0
    """Number of best hits to skip."""

    filter: str | None = None
    """Boolean expression that hits must match; {name} is replaced by a value."""

    filter_params: dict[str, Any] = {}
    """Values for the {name} placeholders: strings, numbers, booleans, or lists."""

    partition_names: Annotated[list[str] | None, Field(min_length=1)] = None
    """Partitions to search; all by default."""

    output_fields: list[str] | None = None
    """Fields to return with a hit; by default all fields of the schema except vectors."""

    text_field: str | None = "text"
    """Field that becomes the hit's text; null for hits without text."""

    consistency_level: Literal["Strong", "Bounded", "Session", "Eventually"] | None = None
    """How fresh the data must be; by default the collection's own level."""

    group_by_field: str | None = None
    """Return one hit per value of this field. Milvus 2.4 or later, or Milvus Lite."""

    round_decimal: Annotated[int | None, Field(ge=0, le=6)] = None
    """Decimals that scores are rounded to."""

    load: bool = True
    """Load the collection if it is not in memory; if false, that is an error."""

    # gRPC waits a second before it connects again, so the attempts together must last longer.
    retry: RetrySettings = RetrySettings(attempts=5, min_wait=0.2, max_wait=2.0)
    """How calls that fail for a passing reason are repeated."""

    breaker: BreakerSettings | None = BreakerSettings(failures=5, wait=2.0)
    """When to stop calling a server that keeps failing; null for never. Not used for Milvus Lite."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.limit + self.offset > MAX_WINDOW:
            raise ConfigError(
                f"limit + offset must be at most {MAX_WINDOW}, got {self.limit + self.offset}",
                "Milvus searches no further",
            )
        if self.is_lite and self.db_name:
            raise ConfigError(
                "only servers have databases", "for Milvus Lite, name another file in `uri`", place="db_name"
            )
        if self.tls is not None and not is_https(self.uri):
            raise ConfigError(
                "only applies to an https:// server", "write https:// in `uri`, or remove `tls`", place="tls"
            )
        check_params(self.params, self.index_type, self.metric_type)
        filters.check(self.filter, self.filter_params)
        return self

    @property
    def is_lite(self) -> bool:
        """Whether the search runs on Milvus Lite."""
        return is_lite(self.uri)

    @property
    def where(self) -> str:
        """Collection and server, for messages."""
        return f"collection {self.collection!r} at {self.uri}"

    def token(self) -> str:
        """The token, from the environment; empty if there is none."""
        return environment(self.token_env) if self.token_env else ""
