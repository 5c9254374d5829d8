"""The stages of several pipelines as a tree, in which equal beginnings are one branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.stage import Stage


@dataclass(eq=False, slots=True)
class Node:
    """One stage, after the same stages and with the same timeout.

    Args:
        stage: of the first system that has it.
        place: its index in the pipeline.
        system: name of the first system that has it.
        timeout: of the pipeline.
        ranks: this stage or one before it gives hits, so there is something to measure.
        children: the next stages, in different systems.
        systems: names of all systems that go through it, in their order.
        ends: names of the systems that end with it.
    """

    stage: Stage
    place: int
    system: str
    timeout: float | None
    ranks: bool
    children: list[Node] = field(default_factory=list)
    systems: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tree:
    """The stages of several systems.

    Args:
        roots: the first stages.
        paths: the nodes of each system, by its name.
    """

    roots: Sequence[Node]
    paths: Mapping[str, Sequence[Node]]

    def __iter__(self) -> Iterator[Node]:
        """Yield every node once, before its children."""
        return iter(dict.fromkeys(node for path in self.paths.values() for node in path))

    def pipelines(self) -> dict[str, Pipeline]:
        """Return the systems as pipelines whose common stages are the same objects, so that each opens once."""
        return {
            name: Pipeline([node.stage for node in path], name=name, timeout=path[0].timeout)
            for name, path in self.paths.items()
        }


def build_tree(systems: Mapping[str, Pipeline]) -> Tree:
    """Build the tree of the pipelines; two stages are one node if they and all stages before them are equal."""
    roots: list[Node] = []
    paths: dict[str, list[Node]] = {}
    for name, pipeline in systems.items():
        siblings, ranks = roots, False
        paths[name] = []
        for place, stage in enumerate(pipeline.stages):
            ranks = ranks or "hits" in stage.provides()
            node = next((node for node in siblings if node.stage == stage and node.timeout == pipeline.timeout), None)
            if node is None:
                node = Node(stage, place, name, pipeline.timeout, ranks)
                siblings.append(node)
            node.systems.append(name)
            paths[name].append(node)
            siblings = node.children
        paths[name][-1].ends.append(name)
    return Tree(roots, paths)
