"""The comparisons of an evaluation by what they compare."""

from __future__ import annotations

from milvus_pipeline.evaluation.records import Comparison, Evaluation


class Lookup:
    """Finds comparisons at once, of which an evaluation of many systems has thousands."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._within: dict[str, list[Comparison]] = {}
        self._stages: dict[tuple[str, str, str], Comparison] = {}
        self._systems: dict[tuple[str, str], Comparison] = {}
        for found in evaluation.comparisons:
            if found.system == found.baseline_system:
                self._stages[found.system, found.stage, found.measure] = found
                self._within.setdefault(found.system, []).append(found)
            else:
                self._systems[found.system, found.measure] = found

    def of_stage(self, system: str, stage: str, measure: str) -> Comparison | None:
        """A stage with the ranking stage before it; None where none was made."""
        return self._stages.get((system, stage, measure))

    def within(self, system: str) -> list[Comparison]:
        """Those of the system's stages, in every measure."""
        return self._within.get(system, [])

    def of_system(self, system: str, measure: str) -> Comparison | None:
        """A system with the baseline; None where none was made."""
        return self._systems.get((system, measure))

    def __len__(self) -> int:
        return len(self._stages) + len(self._systems)
