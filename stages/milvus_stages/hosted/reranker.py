"""The base of the rerankers that are a service on HTTP, hosted or one's own."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator

from milvus_pipeline import BreakerSettings, RetrySettings, ServiceError, StageError
from milvus_pipeline.plugin import PASSING_STATUSES, Context, Deadline, Reranker, RerankJob
from milvus_stages.hosted.conversation import KeyRefusal, Work
from milvus_stages.hosted.http.transport import USER_AGENT, Transport
from milvus_stages.hosted.plan import Limits, Plan, plan
from milvus_stages.hosted.replies import Received, Reply, counted, listed, members
from milvus_stages.hosted.send import Exchange
from milvus_stages.privacy.redaction import proxy_secrets
from milvus_stages.privacy.secrets import FromEnv, VariableName, environment, names_a_secret, secret_from

_OWN_HEADERS = frozenset({"content-type", "content-length", "transfer-encoding", "connection", "host"})
"""Headers that the transport writes."""

_FIELDS: Final = RetrySettings.model_fields


class HostedRetry(RetrySettings):
    """``RetrySettings`` for services: one attempt more, and waits that are longer.

    With these defaults the attempts are spread over 1.75 to 3.5 seconds. A service that counts over a minute and does
    not say when to come again may refuse all of them; see ``requests_per_minute``. A wait of up to ``max_wait`` is
    kept where the service asks for it.
    """

    model_config = ConfigDict(title="Retries")

    # Only the defaults are others.
    attempts: Annotated[int, _FIELDS["attempts"]] = 4
    min_wait: Annotated[float, _FIELDS["min_wait"]] = 0.5
    max_wait: Annotated[float, _FIELDS["max_wait"]] = 60.0


def _hosted(retry: Any) -> Any:
    """What was not set in other settings has the defaults of these."""
    if isinstance(retry, RetrySettings) and not isinstance(retry, HostedRetry):
        return retry.model_dump(exclude_unset=True)
    return retry


def _checked_url(url: str) -> str:
    # No message repeats the URL, which may hold what must not be shown.
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or not re.fullmatch(r"[!-~]+", url):
        raise ValueError("must be http://HOST or https://HOST, with a port and a path if need be")
    if "@" in parts.netloc:
        raise ValueError("must not hold user and password; put the key in the variable that `api_key_env` names")
    if parts.query or parts.fragment:
        raise ValueError("must end with the host, the port or the path, without `?` and `#`")
    return url


def _checked_headers(headers: Any) -> Any:
    if not isinstance(headers, Mapping):
        return headers
    checked: dict[str, str | FromEnv] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("a name must be letters, digits and dashes")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"{name} is written by the transport and cannot be set")
        if isinstance(value, FromEnv):
            checked[name] = value
        elif isinstance(value, Mapping):
            if set(value) != {"env"} or not isinstance(value["env"], str):
                raise ValueError(f"{name}: must be a text, or {{env: NAME}} with the name of an environment variable")
            checked[name] = FromEnv(env=value["env"])
        elif not isinstance(value, str) or not re.fullmatch(r"[ -~]*", value) or value != value.strip():
            raise ValueError(f"{name}: must be a text of printable ASCII without blanks around it, or {{env: NAME}}")
        elif names_a_secret(name) or re.match(r"(basic|bearer)\s", value, re.IGNORECASE):
            raise ValueError(
                f"{name}: looks like a secret; write {{env: NAME}} with the name of a variable that holds it"
            )
        else:
            checked[name] = value
    return checked


BaseURL = Annotated[str, AfterValidator(_checked_url)]

if TYPE_CHECKING:  # what may be written; a stage has it as the classes below
    Headers = Mapping[str, str | FromEnv | Mapping[str, str]]
    Retry = RetrySettings | Mapping[str, int | float]
    Breaking = BreakerSettings | Mapping[str, int | float] | None
else:
    Headers = Annotated[dict[str, str | FromEnv], BeforeValidator(_checked_headers)]
    Retry = Annotated[HostedRetry, BeforeValidator(_hosted)]
    Breaking = BreakerSettings | None


class HostedReranker(Reranker):
    """A reranker that asks a service. Write ``payload``, and ``parse`` where the reply has a shape of its own.

    This class reads the key, plans the requests, sends them from blocking callers and event loops, repeats what may
    pass, keeps to the limits of concurrency and rate, checks the replies and counts the usage. It never trusts a text
    that comes back: scores are taken by index.

    Class attributes:
        path: of the endpoint, put behind ``base_url`` as far as that does not end in it already.
        default_url: the service's address; None where the user has to give it in ``base_url``.
        key_names: environment variables that the key is looked for in, in this order; none where a service needs none.
        takes_top_n: the service can be asked for fewer scores than it is given documents.
        may_return_more: it may give more than it was asked for.
    """

    path: ClassVar[str] = "/rerank"
    default_url: ClassVar[str | None] = None
    key_names: ClassVar[tuple[str, ...]] = ()
    takes_top_n: ClassVar[bool] = True
    may_return_more: ClassVar[bool] = False
    score_neutral: ClassVar[frozenset[str]] = frozenset(
        {
            "api_key_env",
            "request_timeout",
            "max_concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "max_documents",
            "retry",
            "breaker",
        }
    )

    model: Annotated[
        str | None, Field(min_length=1, description="The service's name of the model; its own choice by default.")
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
        int, Field(ge=1, le=1024, description="Requests of this stage under way at the same time, at most.")
    ] = 8
    requests_per_minute: Annotated[
        int | None, Field(ge=1, description="Requests in any 60 seconds, at most; no limit by default.")
    ] = None
    tokens_per_minute: Annotated[
        int | None, Field(ge=1, description="Estimated tokens sent in any 60 seconds, at most; no limit by default.")
    ] = None
    max_documents: Annotated[
        int | None, Field(ge=1, description="Documents in one request, at most; what the service takes by default.")
    ] = None
    retry: Annotated[Retry, Field(description="How failures that may pass are repeated.")] = HostedRetry()
    breaker: Annotated[
        Breaking, Field(description="When a service that fails again and again is left alone; null for never.")
    ] = BreakerSettings()

    _exchange: Exchange | None = PrivateAttr(default=None)

    @field_validator("base_url")
    @classmethod
    def _address_is_known(cls, url: str | None) -> str | None:
        if url is None and cls.default_url is None and cls.address is HostedReranker.address:
            raise ValueError("is not set, and the service has no public address; give that of your server")
        return url

    # -- what a provider says -----------------------------------------------------------------------------------

    @abstractmethod
    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """The body of a request, as plain data.

        Args:
            query: not blank.
            texts: at least one, none of them blank.
            top_n: how many of the best are wanted; from 1 to the number of texts.
        """

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """What a reply says, from its JSON.

        Reads the shapes that most services share: a list under ``results`` or ``data``, or the list itself, of
        objects with ``index`` and with ``relevance_score`` or ``score``; and the token counts under ``usage``.

        Args:
            data: the body.
            headers: of the reply; looked up by lower-case names.

        Raises:
            BadReply: it is none of these.
        """
        return Reply(
            listed(data), counted(members(data, "usage"), "prompt_tokens", "completion_tokens", "total_tokens")
        )

    def limits(self) -> Limits:
        """What the service takes in one request."""
        return Limits()

    @property
    def scores_lists(self) -> bool:
        """Where the model is listwise, see ``limits``."""
        return self._limits().listwise

    def address(self, key: str | None) -> str | None:
        """The service's address where no ``base_url`` is given."""
        return self.default_url

    def too_large(self, error: ServiceError) -> bool:
        """Whether the service may take fewer documents where it refused these."""
        return error.status == 413

    def passing(self, received: Received) -> bool:
        """Whether the same request may succeed later where it got this reply."""
        return received.status in PASSING_STATUSES

    @classmethod
    def about(cls) -> dict[str, str]:
        """Where the key is looked for, and where requests go."""
        return {
            "key": ", else ".join(cls.key_names) or "none is sent, unless api_key_env names its variable",
            "address": joined(cls.default_url, cls.path) if cls.default_url else f"base_url, and {cls.path} behind it",
        }

    def read_secrets(self) -> Iterable[str]:
        """Further secrets, which ``payload`` wants: read them here, when the stage opens. No message repeats them.

        Raises:
            StageError: one is missing.
        """
        return ()

    # -- life ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Read the key, and get ready to connect. Nothing is sent."""
        url, headers, secrets = self.prepared()
        transport = Transport(url, headers, self.type)
        self._exchange = Exchange(self, transport, secrets=secrets, key_names=self.key_variables)

    def prepared(self) -> tuple[str, dict[str, str], tuple[str, ...]]:
        """Where requests go, their headers, and what no message may repeat. StageError where one is missing."""
        headers, secrets = self._sent_headers()
        key = None if "authorization" in headers else self._key()
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
            secrets += (key,)
        secrets += (*self.read_secrets(), *proxy_secrets())
        return self.endpoint(key), headers, secrets

    def endpoint(self, key: str | None) -> str:
        """The URL that requests go to. StageError where it is not known, or is none."""
        base = self.base_url or self.address(key)
        if base is None:
            raise StageError(
                "base_url is not set, and the key does not tell the address", "set it", place=str(self.type)
            )
        try:
            return joined(_checked_url(base), self.path)
        except ValueError as error:
            raise StageError(f"the service's address {error}", place=str(self.type)) from error

    def teardown(self) -> None:
        """Let go of connections and threads."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    async def aclose(self) -> None:
        """``close`` without blocking the event loop; closes what was opened for this event loop alone first."""
        if self._exchange is not None and self._users == 1:
            await self._exchange.aclose_here()
        await super().aclose()

    def identity(self) -> Mapping[str, Any]:
        """The service's address, and the model by the name that is sent; the stage may be closed.

        A service that changes a model under its name does not say so: where it offers dated names, take one.
        """
        sent = "authorization" in {name.lower() for name in self.headers}
        key = None if sent else next(filter(None, map(environment, self.key_variables)), None)
        return {"model": self.model, "url": self.endpoint(key)}

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment variables that the key is looked for in."""
        return self.key_names if self.api_key_env is None else (self.api_key_env,)

    def _key(self) -> str | None:
        names = self.key_variables
        return secret_from(names, f"{self.type}: the API key") if names else None

    def _sent_headers(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """The headers by lower-case names, and the values that are secret."""
        headers, secrets = {"user-agent": USER_AGENT}, []
        for name, value in cast("Mapping[str, str | FromEnv]", self.headers).items():
            if isinstance(value, FromEnv):
                value = secret_from([value.env], f"{self.type}: the header {name}", words=True)
                secrets += [value, *value.split()]
            headers[name.lower()] = value
        return headers, tuple(secrets)

    # -- work ---------------------------------------------------------------------------------------------------

    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """The relevance of each text to the query, as the service gives it; None for a blank text."""
        return self.scored_alone(query, texts, Deadline.after(self.timeout))

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """Score several queries, whose requests overlap. Once the call is given up, no further one is sent."""
        works = self._works(jobs, context)
        try:
            with context.on_cancel(lambda: _give_up(works.values())):
                self._opened.run(list(works.values()), context.deadline.before())
        finally:
            scores = _reported(works, jobs, context)
        return scores

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """``score_batch`` for an event loop, without a thread."""
        works = self._works(jobs, context)
        try:
            await self._opened.arun(list(works.values()), context.deadline.before())
        finally:
            scores = _reported(works, jobs, context)
        return scores

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what would be sent: requests, documents and estimated tokens."""
        for position, planned in self._plans(jobs, context):
            planned.note(context, position)

    @property
    def _opened(self) -> Exchange:
        if self._exchange is None:
            raise StageError(f"{self.name} is not open", "call open() first")
        return self._exchange

    def _works(self, jobs: Sequence[RerankJob], context: Context) -> dict[int, Work]:
        refusal = KeyRefusal()
        return {position: Work(jobs[position], planned, refusal) for position, planned in self._plans(jobs, context)}

    def _plans(self, jobs: Sequence[RerankJob], context: Context) -> Iterator[tuple[int, Plan]]:
        limits = self._limits()
        for position, job in enumerate(jobs):
            try:
                yield position, plan(job, limits, f"{self.type} ({self.model})" if self.model else self.type)
            except StageError as error:
                context.fail(position, error)

    def _limits(self) -> Limits:
        """The service's limits, or lower ones where the configuration says so."""
        try:
            limits = self.limits()
        except ValueError as error:
            raise StageError(f"{type(self).__name__}.limits: {error}", place=str(self.type)) from error
        tokens = [each for each in (limits.tokens, None if limits.listwise else self.tokens_per_minute) if each]
        return replace(limits, documents=self.max_documents or limits.documents, tokens=min(tokens, default=None))


def joined(base: str, path: str) -> str:
    """The URL of an endpoint: the path behind the base, as far as the base does not end in it already."""
    base = base.rstrip("/")
    parts = path.strip("/").split("/")
    for count in range(len(parts), 0, -1):
        if urlsplit(base).path.endswith("/" + "/".join(parts[:count])):
            return "/".join([base, *parts[count:]])
    return "/".join([base, *parts])


def _give_up(works: Iterable[Work]) -> None:
    """End the waits of these queries, and send nothing more for them."""
    for work in works:
        work.fail(StageError("the call was given up"))


def _reported(works: Mapping[int, Work], jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
    """The scores of each query; its failure, warnings and usage go into the report."""
    for position, work in works.items():
        work.report(context, position)
    return [
        works[position].scores if position in works else [None] * len(job.texts) for position, job in enumerate(jobs)
    ]
