"""Servers with the rerank endpoint that vLLM, Infinity, LiteLLM and their kind share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, PrivateAttr

from milvus_stages.hosted import BaseURL, HostedReranker, Limits
from milvus_stages.privacy.secrets import plain_arguments, resolved_arguments

_OWN: Final = {
    "query": "is the query's text",
    "documents": "are the texts of the hits",
    "top_n": "follows from the stage's `top_k`",
    "model": "is set by the stage's `model`",
}
"""What the stage writes into a request, and whence."""


def _checked_options(options: Any) -> Any:
    # No message repeats a value, which may be a key.
    if not isinstance(options, Mapping):
        raise ValueError("must be a mapping of names to values")
    for name in options:
        if not isinstance(name, str) or not name.strip():
            raise ValueError("the names must be text")
        if name in _OWN:
            raise ValueError(f"{name}: cannot be set here, since it {_OWN[name]}")
    return plain_arguments(options)


class RerankAPI(HostedReranker):
    """Scores with any server that has a ``/rerank`` of the usual shape; the range is that of its model.

    ``base_url`` ends before ``/rerank``: ``http://localhost:8000`` for vLLM, ``http://localhost:7997`` for Infinity,
    with ``/v1`` where the server has it. A key is sent only if ``api_key_env`` names its variable. Replies are read
    tolerantly: the list under ``results`` or ``data``, scores under ``relevance_score`` or ``score``.

    Secrets are not written into ``options``: ``{env: NAME}`` in the place of a value, on any level, stands for the
    environment variable NAME, which is read when the stage opens.
    """

    type: ClassVar[str] = "rerank_api"
    may_return_more: ClassVar[bool] = True

    base_url: Annotated[BaseURL, Field(description="Address of the server, such as http://localhost:8000.")]
    options: Annotated[
        dict[str, Any],
        BeforeValidator(_checked_options),
        Field(
            description="More members for the request, such as truncate_prompt_tokens: -1 for vLLM; {env: NAME} takes "
            "a value from the environment."
        ),
    ] = {}
    listwise: Annotated[
        bool, Field(description="The documents of a request see each other, so that a list must not be split.")
    ] = False

    _resolved: dict[str, Any] | None = PrivateAttr(default=None)

    def read_secrets(self) -> frozenset[str]:
        """Those of ``options``."""
        self._resolved, secrets = resolved_arguments(self.options, "options", "the server")
        return secrets

    def teardown(self) -> None:
        """Let go of connections, and of what was read from the environment."""
        super().teardown()
        self._resolved = None

    def limits(self) -> Limits:
        """At most 1,000 documents at a time, a number of ours: Infinity takes 2,048, others state none."""
        return Limits(listwise=True) if self.listwise else Limits(documents=1000)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """``top_n`` always, since some servers insist on it; no echo is asked for, and none is read."""
        body: dict[str, Any] = {"query": query, "documents": texts, "top_n": top_n}
        if self.model is not None:
            body["model"] = self.model
        return {**(self.options if self._resolved is None else self._resolved), **body}
