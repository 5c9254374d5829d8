"""The doctor's check of a budget of tokens or characters."""

from __future__ import annotations

from collections.abc import Iterator

from milvus_pipeline.plugin import CheckContext, Finding, doctor
from milvus_stages.doctors.local import not_here
from milvus_stages.truncate.budget import load_counter
from milvus_stages.truncate.truncate import Truncate


@doctor(Truncate)
def budget_findings(stage: Truncate, context: CheckContext) -> Iterator[Finding]:
    """Check that the tokenizer is on this machine, and how many documents of the collection fit into the budget."""
    counter = None
    if stage.tokenizer is not None:
        counter = load_counter(stage.tokenizer, wanted_by=stage.name, download=False)
        here = Finding.ok("tokenizer", f"{stage.tokenizer} is here")
        yield here if counter is not None else not_here("tokenizer", stage.tokenizer)
    if not context.texts:
        return
    if stage.max_tokens is not None and counter is not None:
        sizes = [counter.count(text) + stage.per_hit for text in context.texts]
        yield _compare(stage, "max_tokens", "tokens", stage.max_tokens - stage.reserve, sizes)
    if stage.max_chars is not None:
        yield _compare(stage, "max_chars", "characters", stage.max_chars, [len(text) for text in context.texts])


def _compare(stage: Truncate, field: str, unit: str, budget: int, sizes: list[int]) -> Finding:
    """How many documents of these sizes fit into the budget."""
    median = sorted(sizes)[len(sizes) // 2]
    if budget < median:
        cut = "" if stage.cut == "cut" else ", or set `cut: cut`, which shortens the first hit instead of dropping it"
        return Finding.warning(
            "budget",
            f"{budget:,} {unit} hold less than one document: the median of {len(sizes)} sampled has {median:,}",
            f"raise {field} to {2 * median:,} or more{cut}",
        )
    fit = budget * len(sizes) / sum(sizes)
    wanted = f" of the {stage.top_k:,} of top_k" if stage.top_k is not None and fit < stage.top_k else ""
    held = f"{budget:,} {unit} hold {fit:.1f} documents on average{wanted}"
    return Finding.ok("budget", f"{held} (median of {len(sizes)} sampled {median:,}, longest {max(sizes):,})")
