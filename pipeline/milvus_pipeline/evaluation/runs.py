"""Runs queries through the tree of stages, a few at a time and depth first, so that memory does not grow."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from milvus_pipeline.evaluation.figures import Tally
from milvus_pipeline.evaluation.measures import Judgements, Measures
from milvus_pipeline.evaluation.movements import LargestChanges, Step
from milvus_pipeline.evaluation.tree import Node, Tree
from milvus_pipeline.records import SearchResult, Status
from milvus_pipeline.reranker import Reranker
from milvus_pipeline.stage import Stage

OnProgress = Callable[[int, int], None]
OnResults = Callable[[str, Sequence[SearchResult]], None]

_TOGETHER = 16  # queries measured together: a call of ir-measures is expensive, and their hits are in memory


@dataclass(slots=True)
class _Batch:
    """Queries that go through the stages together, and the seconds that they have taken so far."""

    results: list[SearchResult]
    seconds: float = 0.0


class TreeRun:
    """A run of queries through all stages of all systems.

    Args:
        tree: the stages of the systems.
        measures: to compute after each stage.
        judged: grade by document id, by query id.
        movements: to keep for each system, at most.
        on_progress: see ``evaluate``.
        on_results: see ``evaluate``.

    Attributes:
        tree: as above.
        judged: as above.
        pipelines: the systems, whose common stages are the same objects; to be opened before ``run``.
        tallies: the figures of each stage.
        changes: the movements to keep of each system.
    """

    def __init__(
        self,
        tree: Tree,
        measures: Measures,
        judged: Judgements,
        movements: int,
        on_progress: OnProgress | None = None,
        on_results: OnResults | None = None,
    ) -> None:
        self.pipelines = tree.pipelines()
        self.tallies = {node: Tally(node, measures, judged) for node in tree}
        self.changes = {name: LargestChanges(name, measures.names[0], movements) for name in tree.paths}
        self.tree = tree
        self.judged = judged
        self._on_progress = on_progress or (lambda done, of: None)
        self._on_results = on_results or (lambda system, results: None)
        self._done = 0
        self._all = len(judged) * len(self.tallies)
        self._outcomes: dict[str, Counter[Status]] = {name: Counter() for name in tree.paths}
        self._failures: dict[str, Counter[str]] = {name: Counter() for name in tree.paths}
        self._first_failure: dict[str, str] = {}

    def warm_up(self, results: Sequence[SearchResult]) -> None:
        """Run the first query, uncounted, through every stage for which that is free."""
        self._warm_up(self.tree.roots, _Batch([result for result in results if result][:1]))

    def _warm_up(self, nodes: Sequence[Node], batch: _Batch) -> None:
        for node in nodes:
            if batch.results and not any(_leaves_traces(member) for member in node.stage.family()):
                self._warm_up(node.children, self._run_stage(node, batch))

    def run(self, results: Sequence[SearchResult], batch_size: int) -> None:
        """Run and count all queries."""
        together = max(batch_size, _TOGETHER // batch_size * batch_size)
        for start in range(0, len(results), together):
            part = results[start : start + together]
            batches = [_Batch(list(part[at : at + batch_size])) for at in range(0, len(part), batch_size)]
            for root in self.tree.roots:
                self._visit(root, batches, [])

    def _visit(self, node: Node, before: list[_Batch], steps: list[list[Step]]) -> None:
        """Run batches through a stage, and then through all stages behind it."""
        after = []
        for batch in before:
            after.append(self._run_stage(node, batch))
            self._done += len(batch.results)
            self._on_progress(self._done, self._all)
        results = _flatten(after)
        found = self.tallies[node].add(_flatten(before), results)
        steps = [*steps, [Step(node, result, values) for result, values in zip(results, found, strict=True)]]
        for child in node.children:
            self._visit(child, after, steps)
        for system in node.ends:
            self._finish(system, results, steps)

    def _run_stage(self, node: Node, batch: _Batch) -> _Batch:
        """Return the batch after the stage, which has what is left of the pipeline's timeout."""
        left = None if node.timeout is None else max(0.0, node.timeout - batch.seconds)
        began = time.perf_counter()
        results = self.pipelines[node.system].run_stages(batch.results, node.place, node.place + 1, timeout=left)
        return _Batch(results, batch.seconds + time.perf_counter() - began)

    def _finish(self, system: str, results: Sequence[SearchResult], steps: Sequence[Sequence[Step]]) -> None:
        """Count the final results of a system for some queries."""
        self._on_results(system, results)
        for position, result in enumerate(results):
            self._outcomes[system][result.status] += 1
            if result.error is not None:
                self._failures[system][result.error.reason_code] += 1
                self._first_failure.setdefault(system, str(result.error))
            own = [step[position] for step in steps]
            self.changes[system].add(own, self.judged[str(result.query.id)])

    def statuses(self, system: str) -> dict[Status, int]:
        """Return the number of queries by the status of the system's result."""
        outcomes = self._outcomes[system]
        return {status: outcomes[status] for status in get_args(Status) if outcomes[status]}

    def warnings(self) -> Iterator[str]:
        """Yield what the reader of the figures should know about the run; equal warnings of systems are one."""
        systems_by_text: dict[str, list[str]] = {}
        for system in self._outcomes:
            for text in self._system_warnings(system):
                systems_by_text.setdefault(text, []).append(system)
        for text, systems in systems_by_text.items():
            more = f" and {len(systems) - 3} more" if len(systems) > 3 else ""
            yield f"{', '.join(systems[:3])}{more}: {text}"
        for node, tally in self.tallies.items():
            if tally.cached:
                yield (
                    f"{node.system}: {tally.cached} scores of {node.stage.name} came from its cache, so its latency is "
                    "not the reranker's"
                )

    def _system_warnings(self, system: str) -> Iterator[str]:
        outcomes = self._outcomes[system]
        count, failed = outcomes.total(), outcomes["failed"]
        if failed:
            codes = ", ".join(f"{code}: {number}" for code, number in self._failures[system].most_common())
            yield (
                f"{failed if failed < count else 'all'} of {count} queries failed ({codes}) and count as having found "
                f"nothing; the first error: {self._first_failure[system]}"
            )
        if incomplete := outcomes["partial"] + outcomes["degraded"]:
            yield f"a stage did not do all of its work for {incomplete} of {count} queries; see its statuses"


def _leaves_traces(stage: Stage) -> bool:
    """Return whether an uncounted run would show: on the bill, or in a score cache."""
    return isinstance(stage, Reranker) and (stage.sends or stage.cache is not None)


def _flatten(batches: Sequence[_Batch]) -> list[SearchResult]:
    return [result for batch in batches for result in batch.results]
