"""The providers by name."""

from __future__ import annotations

from typing import Any

from support.standins.cohere import Cohere
from support.standins.infinity import Infinity
from support.standins.jev import Jev
from support.standins.jina import Jina
from support.standins.mixedbread import Mixedbread
from support.standins.provider import Provider
from support.standins.tei import TEI
from support.standins.vllm import VLLM
from support.standins.voyage import Voyage

PROVIDERS: dict[str, type[Provider]] = {
    provider.name: provider for provider in (Cohere, Voyage, Jina, TEI, VLLM, Infinity, Mixedbread, Jev)
}


def make(name: str, **settings: Any) -> Provider:
    """The provider of a name, with its settings.

    Raises:
        ValueError: there is no provider of that name.
    """
    if name not in PROVIDERS:
        raise ValueError(f"no stand-in for {name!r}; there are {', '.join(PROVIDERS)}")
    return PROVIDERS[name](**settings)
