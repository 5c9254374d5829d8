"""Which comparisons an evaluation makes, and the corrections for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from milvus_pipeline.evaluation.records import Comparison
from milvus_pipeline.evaluation.statistics import corrected, paired
from milvus_pipeline.evaluation.tally import Tally
from milvus_pipeline.evaluation.tree import Node, Tree

Tallies = Mapping[Node, Tally]


def compared(tree: Tree, tallies: Tallies, measures: Sequence[str], test: str, correction: str) -> list[Comparison]:
    """Each stage with the ranking before it, then each system with the first one, in every measure.

    A stage that changed no ranking is not compared. One that several systems share is listed for each of them, and
    counts once in the correction. The corrections are for all comparisons of one measure within their family, which is
    either the stages of all systems or the systems: the two answer different questions.
    """
    by_stage = [
        (name, name, path[place], path[place - 1])
        for name, path in tree.paths.items()
        for place in range(1, len(path))
        if path[place - 1].ranks and tallies[path[place]].changed
    ]
    first, *others = tree.paths
    by_system = [(name, first, tree.paths[name][-1], tree.paths[first][-1]) for name in others]
    return [
        comparison
        for family in (by_stage, by_system)
        for measure in measures
        for comparison in _family(family, tallies, measure, test, correction)
    ]


def _family(
    family: Sequence[tuple[str, str, Node, Node]], tallies: Tallies, measure: str, test: str, correction: str
) -> list[Comparison]:
    """The comparisons of one family in one measure."""
    found: dict[tuple[str, Node, Node], Comparison] = {}
    made: list[tuple[tuple[str, Node, Node], Comparison]] = []
    for system, baseline_system, node, baseline in family:
        # Stages are told apart by their nodes; two systems that share all of them are compared all the same.
        key = ("" if system == baseline_system else system, node, baseline)
        if key not in found:
            difference = paired(tallies[node].values[measure], tallies[baseline].values[measure], test)
            found[key] = Comparison(
                measure=measure,
                system=system,
                stage=node.stage.name,
                baseline_system=baseline_system,
                baseline_stage=baseline.stage.name,
                difference=difference.mean,
                low=difference.low,
                high=difference.high,
                p_value=difference.p_value,
                p_corrected=difference.p_value,
                better=difference.better,
                worse=difference.worse,
                same=difference.same,
            )
        made.append((key, replace(found[key], system=system, baseline_system=baseline_system)))
    p_values = corrected([comparison.p_value for comparison in found.values()], correction)
    at = dict(zip(found, p_values, strict=True))
    return [replace(comparison, p_corrected=at[key]) for key, comparison in made]
