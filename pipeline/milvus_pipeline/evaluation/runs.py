"""Taking queries through the tree of stages, a handful at a time and depth first, so that memory stays flat."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from milvus_pipeline.evaluation.figures import Tally
from milvus_pipeline.evaluation.measures import Judgements, Measures
from milvus_pipeline.evaluation.movements import Gallery, Step
from milvus_pipeline.evaluation.tree import Node, Tree
from milvus_pipeline.records import SearchResult, Status
from milvus_pipeline.reranker import Reranker
from milvus_pipeline.stage import Stage

Progress = Callable[[int, int], None]
Results = Callable[[str, Sequence[SearchResult]], None]

_TOGETHER = 16  # queries measured together: ir-measures has a price a call, and their hits are in memory


@dataclass(slots=True)
class _Batch:
    """Queries that go through the stages together, as a stage left them, and the seconds they took to come there."""

    results: list[SearchResult]
    seconds: float = 0.0


class Walk:
    """A walk of queries through all stages of all systems.

    Args:
        tree: the systems' stages.
        measures: to take after each stage.
        judged: grade by document id, by query id.
        movements: to keep of each system, at most.
        on_progress: see ``evaluate``.
        on_results: see ``evaluate``.

    Attributes:
        pipelines: the systems, whose common stages are the same objects; to be opened before ``run``.
        tallies: what there is to know of each stage.
        galleries: the movements of each system.
    """

    def __init__(
        self,
        tree: Tree,
        measures: Measures,
        judged: Judgements,
        movements: int,
        on_progress: Progress | None = None,
        on_results: Results | None = None,
    ) -> None:
        self.pipelines = tree.pipelines()
        self.tallies = {node: Tally(node, measures, judged) for node in tree}
        self.galleries = {name: Gallery(name, measures.names[0], movements) for name in tree.paths}
        self._tree = tree
        self._judged = judged
        self._on_progress = on_progress or (lambda done, of: None)
        self._on_results = on_results or (lambda system, results: None)
        self._done = 0
        self._all = len(judged) * len(self.tallies)
        self._outcomes: dict[str, Counter[Status]] = {name: Counter() for name in tree.paths}
        self._failures: dict[str, Counter[str]] = {name: Counter() for name in tree.paths}
        self._first_failure: dict[str, str] = {}

    def warm_up(self, results: Sequence[SearchResult]) -> None:
        """Run the first query, uncounted, through every stage that may be run for nothing."""
        self._warm(self._tree.roots, _Batch([result for result in results if result][:1]))

    def _warm(self, nodes: Sequence[Node], batch: _Batch) -> None:
        for node in nodes:
            if batch.results and not any(_is_noticed(member) for member in node.stage.family()):
                self._warm(node.children, self._ran(node, batch))

    def run(self, results: Sequence[SearchResult], batch_size: int) -> None:
        """Run all queries, and count."""
        together = max(batch_size, _TOGETHER // batch_size * batch_size)
        for start in range(0, len(results), together):
            part = results[start : start + together]
            batches = [_Batch(list(part[at : at + batch_size])) for at in range(0, len(part), batch_size)]
            for root in self._tree.roots:
                self._visit(root, batches, [])

    def _visit(self, node: Node, before: list[_Batch], trail: list[list[Step]]) -> None:
        """Take batches through a stage, and on through all that come behind it."""
        after = []
        for batch in before:
            after.append(self._ran(node, batch))
            self._done += len(batch.results)
            self._on_progress(self._done, self._all)
        results = _flat(after)
        found = self.tallies[node].add(_flat(before), results)
        trail = [*trail, [Step(node, result, values) for result, values in zip(results, found, strict=True)]]
        for child in node.children:
            self._visit(child, after, trail)
        for system in node.ends:
            self._end(system, results, trail)

    def _ran(self, node: Node, batch: _Batch) -> _Batch:
        """The batch behind the stage, which has what the stages before it left of the pipeline's timeout."""
        left = None if node.timeout is None else max(0.0, node.timeout - batch.seconds)
        began = time.perf_counter()
        results = self.pipelines[node.system].run_stages(batch.results, node.place, node.place + 1, timeout=left)
        return _Batch(results, batch.seconds + time.perf_counter() - began)

    def _end(self, system: str, results: Sequence[SearchResult], trail: Sequence[Sequence[Step]]) -> None:
        """What a system made of queries in the end."""
        self._on_results(system, results)
        for position, result in enumerate(results):
            self._outcomes[system][result.status] += 1
            if result.error is not None:
                self._failures[system][result.error.reason_code] += 1
                self._first_failure.setdefault(system, str(result.error))
            steps = [passed[position] for passed in trail]
            self.galleries[system].offer(steps, self._judged[str(result.query.id)])

    def statuses(self, system: str) -> dict[Status, int]:
        """Number of queries by the status of the system's result."""
        outcomes = self._outcomes[system]
        return {status: outcomes[status] for status in get_args(Status) if outcomes[status]}

    def warnings(self) -> Iterator[str]:
        """What the reader of the figures should know of the runs."""
        told: dict[str, list[str]] = {}  # by the words the systems that they are true of
        for system, outcomes in self._outcomes.items():
            asked, failed = outcomes.total(), outcomes["failed"]
            if failed:
                codes = ", ".join(f"{code}: {number}" for code, number in self._failures[system].most_common())
                words = (
                    f"{failed if failed < asked else 'all'} of {asked} queries failed ({codes}) and count as having "
                    f"found nothing; the first: {self._first_failure[system]}"
                )
                told.setdefault(words, []).append(system)
            if lacking := outcomes["partial"] + outcomes["degraded"]:
                words = f"{lacking} of {asked} answers lack work of a stage, as its statuses tell"
                told.setdefault(words, []).append(system)
        for words, systems in told.items():
            more = f" and {len(systems) - 3} more" if len(systems) > 3 else ""
            yield f"{', '.join(systems[:3])}{more}: {words}"
        for node, tally in self.tallies.items():
            if tally.cached:
                yield (
                    f"{node.system}: {tally.cached} scores of {node.stage.name} came from its cache, so its latency is "
                    "not the reranker's"
                )


def _is_noticed(stage: Stage) -> bool:
    """Whether a run that does not count would be noticed: by the bill, or in a score cache."""
    return isinstance(stage, Reranker) and (stage.sends or stage.cache is not None)


def _flat(batches: Sequence[_Batch]) -> list[SearchResult]:
    return [result for batch in batches for result in batch.results]
