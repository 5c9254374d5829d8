"""What queries cost at hosted services, or would cost: sums over results, by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from milvus_pipeline.records import SearchResult

Figures = dict[str, int | float]


class Totals:
    """Sums of figures by stage and word, in the order in which they first came."""

    def __init__(self) -> None:
        self._sums: dict[str, Figures] = {}

    def add(self, stage: str, figures: Mapping[str, int | float]) -> None:
        """Add the figures of one stage for one query."""
        if figures:
            sums = self._sums.setdefault(stage, {})
            sums |= {word: sums.get(word, 0) + number for word, number in figures.items()}

    def as_dict(self) -> dict[str, Figures]:
        """Return the sums so far; whole numbers are ints, even if a service says ``2.0``."""
        return {
            stage: {word: int(number) if number == int(number) else number for word, number in figures.items()}
            for stage, figures in self._sums.items()
        }


def total_usage(results: Iterable[SearchResult]) -> dict[str, Figures]:
    """Return what the results cost together, by stage, in the words of each provider.

    Failed queries count: they cost, too. The results are read once and not kept, so they may come from a generator
    that runs as long as a job.

    Returns:
        For example ``{"cohere": {"requests": 225, "search_units": 225}}``; stages without usage are left out.
    """
    return _total(results, "usage")


def total_planned(results: Iterable[SearchResult]) -> dict[str, Figures]:
    """Return what the results of a dry run would cost together, by stage: ``total_usage`` of ``StageReport.planned``.

    Returns:
        For example ``{"cohere": {"requests": 225, "documents": 22_500, "tokens": 4_810_000}}``. The tokens are
        estimates; see ``StageReport.planned``.
    """
    return _total(results, "planned")


def _total(results: Iterable[SearchResult], kind: str) -> dict[str, Figures]:
    totals = Totals()
    for result in results:
        for report in result.reports:
            totals.add(report.stage, getattr(report, kind))
    return totals.as_dict()
