"""The request planner: assigns the documents of a query to requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Context, RerankJob, short_repr

BYTES_PER_TOKEN: Final = 3
"""Bytes of UTF-8 per estimated token. English has about four, Chinese and Japanese about three. The estimate is on the
high side, since a request that is too large is refused as a whole."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service accepts in one request.

    Args:
        documents: maximum number of documents; None for no limit.
        tokens: maximum of estimated tokens; None for no limit. A single document is sent whatever its length.
        document_tokens: length at which the service truncates a document; longer documents count as this long.
        query_repeats: the service counts the query once per document, not once per request.
        document_extra: estimated tokens that are sent with each document, such as a question about it.
        listwise: the model sees all documents of a request, so that scores of two requests cannot be compared.

    Raises:
        ValueError: a limit is not an integer of at least 1.
    """

    documents: int | None = None
    tokens: int | None = None
    document_tokens: int | None = None
    query_repeats: bool = True
    document_extra: int = 0
    listwise: bool = False

    def __post_init__(self) -> None:
        """Check the limits."""
        for name in ("documents", "tokens", "document_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1 or None, got {short_repr(value)}")


@dataclass(frozen=True, slots=True)
class Part:
    """The documents of one request.

    Args:
        places: positions of the documents among the texts of the job.
        sizes: estimated tokens of each, including what is sent with it.
        once: estimated tokens that are sent once per request.
        top_k: how many of the best are wanted; at least 1, at most the number of documents.
    """

    places: tuple[int, ...]
    sizes: tuple[int, ...]
    once: int
    top_k: int

    @property
    def tokens(self) -> int:
        """The estimated tokens of the request."""
        return self.once + sum(self.sizes)

    def texts(self, job: RerankJob) -> list[str]:
        """Return the documents as they are sent."""
        return [sendable(job.texts[place]) for place in self.places]

    def halves(self) -> tuple[Part, Part]:
        """Split this request, which has at least two documents, into two."""
        middle = len(self.places) // 2
        return self._part(range(middle)), self._part(range(middle, len(self.places)))

    def without(self, at: int) -> tuple[Part, Part | None]:
        """Return a request of one of its documents, and one of the others, if there are any."""
        rest = [other for other in range(len(self.places)) if other != at]
        return self._part([at]), self._part(rest) if rest else None

    def _part(self, chosen: Sequence[int]) -> Part:
        places = tuple(self.places[at] for at in chosen)
        return Part(places, tuple(self.sizes[at] for at in chosen), self.once, min(self.top_k, len(places)))


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests for one query.

    Args:
        parts: empty if every document is blank; the first documents are in the first part.
        blank: number of documents that are left out because they are only white space.
        warnings: for the reader of the result, however the requests end.
    """

    parts: tuple[Part, ...]
    blank: int
    warnings: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, int]:
        """The numbers of requests, documents and estimated tokens."""
        return {
            "requests": len(self.parts),
            "documents": sum(len(part.places) for part in self.parts),
            "tokens": sum(part.tokens for part in self.parts),
        }

    def report(self, context: Context, position: int, *, ranked: bool = True) -> None:
        """Put the warnings and their figures into the report of a query.

        Args:
            context: of the batch.
            position: of the query in it.
            ranked: the documents were ranked; a warning about the order applies only then.
        """
        if self.blank:
            context.note(position, documents_blank=self.blank)
            if ranked:
                total = self.blank + self.figures["documents"]
                context.warn(f"{self.blank} of {total} documents are blank; ranked last, without a score", position)
        for warning in self.warnings:
            context.warn(warning, position)


def plan(job: RerankJob, limits: Limits, service: str) -> Plan:
    """Assign the documents that are not blank to requests within the limits.

    Raises:
        StageError: the list is too long for a listwise model.
    """
    places = [place for place, text in enumerate(job.texts) if text.strip()]
    blank = len(job.texts) - len(places)
    query = estimated_tokens(job.query)
    sizes = {place: _size(job.texts[place], query, limits) for place in places}
    once = 0 if limits.query_repeats else query
    warnings: list[str] = []
    if limits.listwise:
        warnings = _listwise_check(len(places), once + sum(sizes.values()), limits, service)
        limits = Limits()
    parts = [
        Part(tuple(group), tuple(sizes[place] for place in group), once, min(job.top_k or len(group), len(group)))
        for group in _groups(places, sizes, limits, once)
    ]
    return Plan(tuple(parts), blank, tuple(warnings))


def _listwise_check(count: int, tokens: int, limits: Limits, service: str) -> list[str]:
    """Return a warning if the list is long for one request; raise StageError if it cannot be sent."""
    if limits.documents is not None and count > limits.documents:
        raise StageError(
            f"{service} ranks the documents of a request against each other, so {count} of them "
            f"cannot be split into requests of {limits.documents}",
            "retrieve fewer (`limit`), or use a model that scores pairs",
            reason_code="too_large",
        )
    if limits.tokens is not None and tokens > limits.tokens:
        return [
            f"about {tokens:,} tokens in one request, but {service} reads {limits.tokens:,}; not split, since scores "
            "of two requests cannot be compared; retrieve fewer, or shorten the documents"
        ]
    return []


def _groups(places: Sequence[int], sizes: dict[int, int], limits: Limits, once: int) -> list[list[int]]:
    """Group neighbours into as few groups as the limits allow, evenly if only the number of documents is limited."""
    if not places:
        return []
    requests = math.ceil(len(places) / (limits.documents or len(places)))
    bounds = [round(len(places) * number / requests) for number in range(requests + 1)]
    even = [list(places[first:end]) for first, end in pairwise(bounds)]
    if limits.tokens is None or all(once + sum(map(sizes.__getitem__, group)) <= limits.tokens for group in even):
        return even
    groups: list[list[int]] = []
    tokens = 0
    for place in places:
        full = bool(groups) and limits.documents is not None and len(groups[-1]) >= limits.documents
        if not groups or full or tokens + sizes[place] > limits.tokens:
            groups.append([])
            tokens = once
        groups[-1].append(place)
        tokens += sizes[place]
    return groups


def _size(text: str, query: int, limits: Limits) -> int:
    tokens = estimated_tokens(text)
    if limits.document_tokens is not None:
        tokens = min(tokens, limits.document_tokens)
    return tokens + limits.document_extra + (query if limits.query_repeats else 0)


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has, by its length in UTF-8; at least 1."""
    return max(1, math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN))


def sendable(text: str) -> str:
    """Replace unpaired surrogates, which UTF-8 cannot encode, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
