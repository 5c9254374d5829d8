"""What queries cost at hosted services, and what they would: sums over results, one stage at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from milvus_pipeline.records import SearchResult

Figures = dict[str, int | float]


class Totals:
    """Sums of figures by stage and word, both in the order in which they first came."""

    def __init__(self) -> None:
        self._sums: dict[str, Figures] = {}

    def add(self, stage: str, figures: Mapping[str, int | float]) -> None:
        """Add the figures of one stage and query; nothing where there are none."""
        if not figures:
            return
        own = self._sums.setdefault(stage, {})
        for word, number in figures.items():
            own[word] = own.get(word, 0) + number

    def as_dict(self) -> dict[str, Figures]:
        """The sums so far; whole numbers are ints, though a service said ``2.0``."""
        return {
            stage: {word: int(number) if number == int(number) else number for word, number in figures.items()}
            for stage, figures in self._sums.items()
        }


def total_usage(results: Iterable[SearchResult]) -> dict[str, Figures]:
    """What the results cost together, by stage, in the words of each provider.

    Queries that failed are counted: they cost too. The results are gone through once and none is kept, so they may
    come from a generator that goes on for as long as a job does.

    Returns:
        Such as ``{"cohere": {"requests": 225, "search_units": 225}}``; stages without usage are left out.
    """
    totals = Totals()
    for result in results:
        for report in result.reports:
            totals.add(report.stage, report.usage)
    return totals.as_dict()


def total_planned(results: Iterable[SearchResult]) -> dict[str, Figures]:
    """What the results of a dry run would cost together, by stage; ``total_usage`` for ``StageReport.planned``.

    Returns:
        Such as ``{"cohere": {"requests": 225, "documents": 22_500, "tokens": 4_810_000}}``. The tokens are
        estimates; see ``StageReport.planned``.
    """
    totals = Totals()
    for result in results:
        for report in result.reports:
            totals.add(report.stage, report.planned)
    return totals.as_dict()
