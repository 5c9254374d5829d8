"""The base of stages that call a service on HTTP: its address, key and headers, its limits and retries.

It knows nothing of reranking.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator

from milvus_pipeline import BreakerSettings, ConfigError, RetrySettings, ServiceError, StageError
from milvus_pipeline.plugin import PASSING_STATUSES, Stage
from milvus_stages.hosted.http.transport import USER_AGENT
from milvus_stages.hosted.replies import Received
from milvus_stages.privacy.redaction import proxy_secrets
from milvus_stages.privacy.secrets import (
    FromEnv,
    VariableName,
    environment,
    is_reference,
    looks_secret,
    plain_arguments,
    read_header_value,
)

_TRANSPORT_HEADERS: Final = frozenset({"content-type", "content-length", "transfer-encoding", "connection", "host"})

_FIELDS: Final = RetrySettings.model_fields


class HostedRetry(RetrySettings):
    """``RetrySettings`` for services: one attempt more, and longer waits.

    With these defaults the attempts are spread over 1.75 to 3.5 seconds. A service that counts requests per minute and
    does not say how long to wait may refuse all of them; see ``requests_per_minute``. A wait of up to ``max_wait`` is
    kept if the service asks for it.
    """

    model_config = ConfigDict(title="Retries")

    # Only the defaults differ.
    attempts: Annotated[int, _FIELDS["attempts"]] = 4
    min_wait: Annotated[float, _FIELDS["min_wait"]] = 0.5
    max_wait: Annotated[float, _FIELDS["max_wait"]] = 60.0


def _with_hosted_defaults(retry: Any) -> Any:
    """Reduce other settings to what was set in them, so that the rest has the defaults above."""
    if isinstance(retry, RetrySettings) and not isinstance(retry, HostedRetry):
        return retry.model_dump(exclude_unset=True)
    return retry


def _check_url(url: str) -> str:
    # No message repeats the URL, which may hold a password.
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch(r"[!-~]+", url):
        raise ValueError("must be http://HOST or https://HOST, with a port and a path if needed")
    if "@" in parts.netloc:
        raise ConfigError("must not contain user and password", "put the key in the variable that `api_key_env` names")
    if parts.query or parts.fragment:
        raise ValueError("must end with the host, the port or the path, without `?` and `#`")
    return url


def _check_headers(headers: Any) -> Any:
    if not isinstance(headers, Mapping):
        return headers
    checked = plain_arguments(headers)
    for name, value in checked.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("a name must consist of letters, digits and dashes")
        if name.lower() in _TRANSPORT_HEADERS:
            raise ValueError(f"{name} is written by the transport and cannot be set")
        if is_reference(value):
            continue
        if not isinstance(value, str) or not re.fullmatch(r"[ -~]*", value) or value != value.strip():
            raise ValueError(f"{name}: must be printable ASCII without blanks around it, or {{env: NAME}}")
        if re.match(r"(basic|bearer)\s", value, re.IGNORECASE):
            raise looks_secret(name)
    return checked


BaseURL = Annotated[str, AfterValidator(_check_url)]
"""The type of a field that takes the address of a service."""

if TYPE_CHECKING:  # what a caller may pass; a stage holds the types below
    Headers = Mapping[str, str | FromEnv | Mapping[str, str]]
    Retry = RetrySettings | Mapping[str, int | float]
    Breaking = BreakerSettings | Mapping[str, int | float] | None
else:
    Headers = Annotated[dict[str, str | FromEnv], BeforeValidator(_check_headers)]
    Retry = Annotated[HostedRetry, BeforeValidator(_with_hosted_defaults)]
    Breaking = BreakerSettings | None


class HostedService(Stage):
    """The configuration of a stage that calls a service.

    Class attributes:
        path: of the endpoint, appended to ``base_url`` as far as that does not already end in it.
        default_url: the service's address; None if the user has to give it in ``base_url``.
        key_names: environment variables that may hold the key, the first one first; empty if a service needs no key.
    """

    path: ClassVar[str] = ""
    default_url: ClassVar[str | None] = None
    key_names: ClassVar[tuple[str, ...]] = ()

    model: Annotated[
        str | None, Field(min_length=1, description="The service's name of the model; the service's default if unset.")
    ] = None
    api_key_env: Annotated[
        VariableName | None,
        Field(
            description="Name of the environment variable that holds the API key; the service's usual one by default."
        ),
    ] = None
    base_url: Annotated[
        BaseURL | None, Field(description="Address of the service, or of a proxy; its public one by default.")
    ] = None
    headers: Annotated[
        Headers, Field(description="Headers to add to each request; {env: NAME} takes a value from the environment.")
    ] = {}
    request_timeout: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="Seconds that one attempt at a request may take.")
    ] = 30.0
    max_concurrency: Annotated[
        int, Field(ge=1, le=1024, description="Maximum number of requests of this stage in flight at the same time.")
    ] = 8
    requests_per_minute: Annotated[
        int | None, Field(ge=1, description="Maximum number of requests in any 60 seconds; no limit by default.")
    ] = None
    tokens_per_minute: Annotated[
        int | None,
        Field(ge=1, description="Maximum number of estimated tokens sent in any 60 seconds; no limit by default."),
    ] = None
    retry: Annotated[Retry, Field(description="How often and after which waits a failed request is retried.")] = (
        HostedRetry()
    )
    breaker: Annotated[
        Breaking, Field(description="When calls to a service that keeps failing stop for a while; null for never.")
    ] = BreakerSettings()

    @field_validator("base_url")
    @classmethod
    def _address_is_known(cls, url: str | None) -> str | None:
        if url is None and cls.default_url is None and cls.address is HostedService.address:
            raise ConfigError("is not set, and the service has no public address", "give the address of your server")
        return url

    # -- what a provider may override ---------------------------------------------------------------------------

    def address(self, key: str | None) -> str | None:
        """Return the service's address if no ``base_url`` is given."""
        return self.default_url

    def too_large(self, error: ServiceError) -> bool:
        """Return whether the service refused a request for its size, so that it may take a smaller one."""
        return error.status == 413

    def passing(self, received: Received) -> bool:
        """Return whether the same request may succeed later if it got this reply."""
        return received.status in PASSING_STATUSES

    def read_secrets(self) -> Iterable[str]:
        """Read further secrets of the request's body when the stage opens. No message repeats them.

        Raises:
            StageError: one is missing.
        """
        return ()

    @classmethod
    def about(cls) -> dict[str, str]:
        """Return the environment variables of the key, and the address of the requests."""
        return {
            "key": ", else ".join(cls.key_names) or "none is sent, unless api_key_env names its variable",
            "address": join_url(cls.default_url, cls.path) if cls.default_url else f"base_url, followed by {cls.path}",
        }

    # -- what is sent with each request -------------------------------------------------------------------------

    def read_connection(self) -> tuple[str, dict[str, str], tuple[str, ...]]:
        """Return the URL of the requests, their headers, and the secrets that no message may repeat.

        Raises:
            StageError: the key, a header or the address is missing.
        """
        headers, secrets = {"user-agent": USER_AGENT}, []
        for name, value in cast("Mapping[str, str | FromEnv]", self.headers).items():
            if isinstance(value, FromEnv):
                value = read_header_value([value.env], f"{self.type}: the header {name}", blanks=True)
                secrets.append(value)
            headers[name.lower()] = value
        key = None
        if "authorization" not in headers and self.key_variables:
            key = read_header_value(self.key_variables, f"{self.type}: the API key")
            headers["authorization"] = f"Bearer {key}"
            secrets.append(key)
        secrets += [*self.read_secrets(), *proxy_secrets()]
        return self.endpoint(key), headers, tuple(secrets)

    def endpoint(self, key: str | None) -> str:
        """Return the URL of the requests.

        Raises:
            StageError: it is unknown or invalid.
        """
        base = self.base_url or self.address(key)
        if base is None:
            raise StageError(
                "base_url is not set, and the key does not tell the address", "set base_url", place=self.type
            )
        try:
            return join_url(_check_url(base), self.path)
        except ValueError as error:
            raise StageError(f"the service's address {error}", place=self.type) from error

    def identity(self) -> Mapping[str, Any]:
        """Return the service's address and the name of the model; the stage may be closed.

        A service does not report that the model behind a name has changed; use a dated name if it offers one.
        """
        has_header = "authorization" in {name.lower() for name in self.headers}
        key = None if has_header else next(filter(None, map(environment, self.key_variables)), None)
        return {"model": self.model, "url": self.endpoint(key)}

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment variables that may hold the key."""
        return self.key_names if self.api_key_env is None else (self.api_key_env,)


def join_url(base: str, path: str) -> str:
    """Append the path of an endpoint to a URL, as far as the URL does not already end in it."""
    base = base.rstrip("/")
    parts = path.strip("/").split("/")
    for count in range(len(parts), 0, -1):
        if urlsplit(base).path.endswith("/" + "/".join(parts[:count])):
            return "/".join([base, *parts[count:]])
    return "/".join([base, *parts])
