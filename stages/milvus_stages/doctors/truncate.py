"""What ``milvus-pipeline doctor`` looks at in a budget of tokens or characters."""

from __future__ import annotations

from collections.abc import Iterator

from milvus_pipeline import StageError
from milvus_pipeline.plugin import CheckContext, Finding, doctor
from milvus_stages.local.files import locate_here
from milvus_stages.truncate.budget import TOKENIZER_FILE, TokenCounter, load_counter
from milvus_stages.truncate.truncate import Truncate


@doctor(Truncate)
def budget_findings(stage: Truncate, context: CheckContext) -> Iterator[Finding]:
    """Whether the tokenizer is here, and how much of the collection's documents the budget holds."""
    counter = None
    if stage.tokenizer is not None:
        try:
            folder = locate_here(stage.tokenizer, wanted_by=stage.name, file=TOKENIZER_FILE)
            if folder is None:
                said = f"{stage.tokenizer!r} is not on this machine, so it is downloaded when the stage opens"
                step = "open the pipeline once where the hub can be reached, or name a local folder"
                yield Finding.warning("tokenizer", said, step)
            else:
                counter = load_counter(str(folder), wanted_by=stage.name)
                yield Finding.ok("tokenizer", f"{stage.tokenizer} is here")
        except StageError as error:
            yield Finding.of(error, "tokenizer")
    if not context.texts:
        return
    if stage.max_tokens is not None and counter is not None:
        yield _held(stage, "tokens", stage.max_tokens - stage.reserve, _sizes(context, counter, stage.per_hit))
    if stage.max_chars is not None:
        yield _held(stage, "characters", stage.max_chars, [len(text) for text in context.texts])


def _sizes(context: CheckContext, counter: TokenCounter, per_hit: int) -> list[int]:
    return [counter.count(text) + per_hit for text in context.texts]


def _held(stage: Truncate, unit: str, budget: int, sizes: list[int]) -> Finding:
    """How many documents of such sizes the budget holds."""
    median = sorted(sizes)[len(sizes) // 2]
    field = "max_tokens" if unit == "tokens" else "max_chars"
    if budget < median:
        return Finding.warning(
            "budget",
            f"{budget:,} {unit} hold less than one document: the median of {len(sizes)} sampled has {median:,}",
            f"raise {field} to {2 * median:,} or more{_or_cut(stage)}",
        )
    fit = budget * len(sizes) / sum(sizes)
    wanted = f" of the {stage.top_k:,} of top_k" if stage.top_k is not None and fit < stage.top_k else ""
    said = f"{budget:,} {unit} hold {fit:.1f} documents on average{wanted}"
    return Finding.ok("budget", f"{said} (median of {len(sizes)} sampled {median:,}, longest {max(sizes):,})")


def _or_cut(stage: Truncate) -> str:
    return "" if stage.cut == "cut" else ", or set `cut: cut`, so that the first hit is shortened and not dropped"
