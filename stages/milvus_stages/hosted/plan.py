"""The request planner: which documents of a query go into which request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Context, RerankJob, short_repr

BYTES_PER_TOKEN: Final = 3
"""Bytes of UTF-8 that count as a token. English has about four, Chinese and Japanese about three: an estimate that is
rather too high, since a request that is too large is refused as a whole."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service takes in one request.

    Args:
        documents: number of documents, at most; None for any number.
        tokens: estimated tokens, at most; None for any number. A single document is sent however long it is.
        document_tokens: the service cuts a document at so many tokens, so that what is longer counts no more.
        query_repeats: the service counts the query once for each document, not once a request.
        document_extra: estimated tokens that are sent with each document (a question about it, say).
        listwise: the documents of a request see each other, so that scores of two requests cannot be compared.
    """

    documents: int | None = None
    tokens: int | None = None
    document_tokens: int | None = None
    query_repeats: bool = True
    document_extra: int = 0
    listwise: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError where a limit is no whole number of at least 1."""
        for name in ("documents", "tokens", "document_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, or None, is {short_repr(value)}")


@dataclass(frozen=True, slots=True)
class Part:
    """The documents of one request.

    Args:
        places: positions of the documents among the texts of the job.
        sizes: estimated tokens of each, with what is sent with it.
        once: estimated tokens that are sent once a request.
        top_k: how many of the best are wanted; at least 1, at most the number of documents.
    """

    places: tuple[int, ...]
    sizes: tuple[int, ...]
    once: int
    top_k: int

    @property
    def tokens(self) -> int:
        """Estimated tokens of the request."""
        return self.once + sum(self.sizes)

    def texts(self, job: RerankJob) -> list[str]:
        """The documents, as they are sent."""
        return [sendable(job.texts[place]) for place in self.places]

    def halves(self) -> tuple[Part, Part]:
        """Two requests in place of this one, which has at least two documents."""
        middle = len(self.places) // 2
        return self._part(range(middle)), self._part(range(middle, len(self.places)))

    def without(self, place: int) -> tuple[Part, Part | None]:
        """One of its documents, and the others, if there are any."""
        at = self.places.index(place)
        rest = [other for other in range(len(self.places)) if other != at]
        return self._part([at]), self._part(rest) if rest else None

    def _part(self, chosen: Sequence[int]) -> Part:
        places = tuple(self.places[at] for at in chosen)
        return Part(places, tuple(self.sizes[at] for at in chosen), self.once, min(self.top_k, len(places)))


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests for one query.

    Args:
        parts: none where every document is blank; the first documents are in the first.
        blank: number of documents that are left out, having nothing but white space.
        warnings: what the reader of the result should know, however the requests end.
    """

    parts: tuple[Part, ...]
    blank: int
    warnings: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, int]:
        """Requests, documents and estimated tokens."""
        return {
            "requests": len(self.parts),
            "documents": sum(len(part.places) for part in self.parts),
            "tokens": sum(part.tokens for part in self.parts),
        }

    def report(self, context: Context, position: int, *, ranked: bool = True) -> None:
        """Leave the warnings, and what they are about, where the result carries them.

        Args:
            context: of the batch.
            position: of the query in it.
            ranked: the documents were put into an order; what is told of that order holds only then.
        """
        self._warn(context, position, ranked=ranked)
        if self.blank:
            context.note(position, documents_blank=self.blank)

    def note(self, context: Context, position: int) -> None:
        """Leave the warnings, and the figures of a dry run, where the result carries them."""
        self._warn(context, position, ranked=True)
        context.note(position, planned=self.figures)

    def _warn(self, context: Context, position: int, *, ranked: bool) -> None:
        if self.blank and ranked:
            total = self.blank + self.figures["documents"]
            context.warn(f"{self.blank} of {total} documents are blank; ranked last, without a score", position)
        for warning in self.warnings:
            context.warn(warning, position)


def plan(job: RerankJob, limits: Limits, service: str) -> Plan:
    """Leave out blank documents, and split the others into requests within the limits.

    Raises:
        StageError: the list would have to be split, but the model is listwise.
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
    """The warning that a list is long for one request; StageError where it cannot be sent at all."""
    if limits.documents is not None and count > limits.documents:
        raise StageError(
            (
                f"{service} ranks the documents of a request against each other, so {count} of them "
                f"cannot be split into requests of {limits.documents}"
            ),
            "retrieve fewer (`limit`), or take a model that scores pairs",
            reason_code="too_large",
        )
    if limits.tokens is not None and tokens > limits.tokens:
        return [
            f"about {tokens:,} tokens in one request, where {service} reads {limits.tokens:,}; not split, since scores "
            "of two requests cannot be compared; retrieve fewer, or shorten the documents"
        ]
    return []


def _groups(places: Sequence[int], sizes: dict[int, int], limits: Limits, once: int) -> list[list[int]]:
    """Neighbours in as few groups as the limits allow, as even in number as can be where only documents are limited."""
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
    """About how many tokens a text has, by its length in UTF-8; at least 1."""
    return max(1, math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN))


def sendable(text: str) -> str:
    """The text with halves of surrogate pairs, which UTF-8 cannot carry, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
