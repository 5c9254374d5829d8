"""The providers by name."""

from __future__ import annotations

from typing import Any

from support.standins.cohere import Cohere
from support.standins.provider import Provider
from support.standins.voyage import Voyage

PROVIDERS: dict[str, type[Provider]] = {provider.name: provider for provider in (Cohere, Voyage)}


def make(name: str, **settings: Any) -> Provider:
    """The provider of a name, with its settings.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PROVIDERS:
        raise ValueError(f"no stand-in for {name!r}; there are {', '.join(PROVIDERS)}")
    return PROVIDERS[name](**settings)
