"""Servers with the rerank endpoint that vLLM, Infinity, LiteLLM and others share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, PrivateAttr

from milvus_stages.hosted import BaseURL, HostedReranker, Limits
from milvus_stages.privacy.secrets import plain_arguments, resolved_arguments

_RESERVED: Final = frozenset({"query", "documents", "top_n", "model"})
"""Members that the stage sets itself."""


def _check_options(options: Any) -> Any:
    # No message repeats a value, which may be a secret.
    if not isinstance(options, Mapping):
        raise ValueError("must be a mapping of names to values")
    for name in options:
        if name in _RESERVED:
            raise ValueError(f"{name}: cannot be set here, since the stage sets it")
    return plain_arguments(options)


class RerankAPI(HostedReranker):
    """Scores with any server that has the usual ``/rerank`` endpoint; the range is that of its model.

    ``base_url`` ends before ``/rerank``: ``http://localhost:8000`` for vLLM, ``http://localhost:7997`` for Infinity,
    with ``/v1`` if the server has it. A key is sent only if ``api_key_env`` names its variable. Replies may have the
    list under ``results`` or ``data``, and scores under ``relevance_score`` or ``score``.

    ``options`` must not contain secrets: write ``{env: NAME}`` instead of a value, on any level, to take it from the
    environment variable NAME when the stage opens.
    """

    type: ClassVar[str] = "rerank_api"
    may_return_more: ClassVar[bool] = True

    base_url: Annotated[BaseURL, Field(description="Address of the server, such as http://localhost:8000.")]
    options: Annotated[
        dict[str, Any],
        BeforeValidator(_check_options),
        Field(
            description="More members of the request, such as truncate_prompt_tokens: -1 for vLLM; {env: NAME} takes "
            "a value from the environment."
        ),
    ] = {}
    listwise: Annotated[
        bool, Field(description="The model sees all documents of a request, so that a list must not be split.")
    ] = False

    _resolved: dict[str, Any] | None = PrivateAttr(default=None)

    def read_secrets(self) -> frozenset[str]:
        """Read the secrets of ``options``."""
        self._resolved, secrets = resolved_arguments(self.options, "options")
        return secrets

    def teardown(self) -> None:
        """Close connections, and forget what was read from the environment."""
        super().teardown()
        self._resolved = None

    def limits(self) -> Limits:
        """Return 1,000 documents, which we chose: Infinity accepts 2,048, others document no limit."""
        return Limits(listwise=True) if self.listwise else Limits(documents=1000)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body, always with ``top_n``, since some servers require it."""
        body: dict[str, Any] = {"query": query, "documents": texts, "top_n": top_n}
        if self.model is not None:
            body["model"] = self.model
        return {**(self.options if self._resolved is None else self._resolved), **body}
