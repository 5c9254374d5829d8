"""The doctor's checks of stages that run a local model. They read its files, never its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from milvus_pipeline.plugin import CheckContext, Finding, doctor, require, share_text
from milvus_stages.encode.encoder import Encode
from milvus_stages.local.files import file_error, locate_here, read_object
from milvus_stages.local.head import output_dim
from milvus_stages.local.models import LocalModel, ModelFiles, describe, max_length_of, read_config, usable_device
from milvus_stages.local.pair_reranker import LocalReranker
from milvus_stages.rerank.pymilvus_model import PymilvusModel

QUERY_TOKENS: Final = 16
"""The assumed length of a query."""

_HIDDEN_SIZES: Final = ("hidden_size", "d_model", "dim", "n_embd")
"""Names of the size of a network's hidden states, by model type."""

_PADDING_FIRST: Final = ("roberta", "camembert", "mpnet", "data2vec-text", "xlm-roberta")
"""Model types that number positions from the padding token's id on."""


@doctor(Encode)
def encoder_findings(stage: Encode, context: CheckContext) -> Iterator[Finding]:
    """Check an encoder, and leave the dimension of its vectors in the context."""
    files = read_files(stage)
    if files is None:
        yield not_here("model", stage.model)
        return
    specials = files.tokenizer.specials
    hidden = next((size for name in _HIDDEN_SIZES if (size := getattr(files.config, name, None))), None)
    tokens = max_length_of(files, stage.max_length, specials) - specials
    vectors = "vectors (its files do not say how long)"
    if hidden is not None:
        context.dim, context.dim_of = output_dim(files.folder, hidden), f"{stage.name} ({stage.model})"
        vectors = f"vectors of {context.dim}"
    yield Finding.ok("model", f"{stage.model} is here: {vectors}, from the first {tokens:,} tokens of a text")
    yield from _check_device(stage)


@doctor(LocalReranker)
def reranker_findings(stage: LocalReranker, context: CheckContext) -> Iterator[Finding]:
    """Check a reranker, and count the documents that are too long for it."""
    files = read_files(stage)
    if files is None:
        yield not_here("model", stage.model)
        return
    trial = stage.model_copy()  # `prepare` writes to the stage, which must not change
    trial.prepare(files)
    room = trial.document_room(QUERY_TOKENS)
    beside = f" beside a query of {QUERY_TOKENS}" if trial.document_room(0) != room else ""
    yield Finding.ok("model", f"{stage.model} is here; it reads {room:,} tokens of a document{beside}")
    yield from _check_device(stage)
    if context.texts:
        lengths = [own.length for own in files.tokenizer.tokens(context.texts, 0)]
        used = files.tokenizer.pair_specials + (QUERY_TOKENS if beside else 0)
        yield _compare_lengths(lengths, room, context, extensible=files.limit > room + used)


@doctor(PymilvusModel)
def function_findings(stage: PymilvusModel, context: CheckContext) -> Iterator[Finding]:
    """Check the library, the function and its arguments, without creating the function."""
    stage.resolve()
    yield Finding.ok("function", f"{stage.function} exists and takes these arguments; its model was not checked")
    if stage.sends and context.hits is not None:
        yield Finding.ok("requests", f"a query with {context.hits:,} hits is 1 request")


def _compare_lengths(lengths: Sequence[int], room: int, context: CheckContext, *, extensible: bool) -> Finding:
    ordered = sorted(lengths)
    sizes = f"the median has {ordered[len(ordered) // 2]:,} tokens, the longest {ordered[-1]:,}"
    cut = sum(length > room for length in lengths)
    if not cut:
        return Finding.ok("documents", f"none of {len(lengths)} sampled documents is too long for it; {sizes}")
    return Finding.warning(
        "documents",
        f"{share_text(cut, len(lengths), context.documents)} are longer than the {room:,} tokens that it reads of one; "
        f"their ends are not read; {sizes}",
        f"split them into passages when you fill the collection, or {'raise max_length, or ' if extensible else ''}use "
        "a reranker that reads more",
    )


def not_here(topic: str, model: str) -> Finding:
    """Return the finding that a model of the hub is not on this machine."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    why = "and HF_HUB_OFFLINE prevents its download" if offline else "so it is downloaded when the stage opens"
    step = "open the pipeline once where the hub can be reached, or name a local folder, or package:NAME/PATH"
    return Finding("error" if offline else "warning", topic, f"{model!r} is not on this machine, {why}", step)


def read_files(stage: LocalModel) -> ModelFiles | None:
    """Read a model's small files; return None if they are not on this machine.

    Raises:
        StageError: a package is not installed, files are missing or damaged, or it is not a model of the stage's kind.
    """
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            require(package, extra="local", wanted_by=stage.name)
    folder = locate_here(stage.model, stage.revision, wanted_by=stage.name)
    if folder is None:
        return None
    inner, config = read_config(stage.model, folder, stage.kind)
    names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    labels = {"id2label": names, "num_labels": len(names) or int(config.get("num_labels", 2))}
    fast = _fast_tokenizer(inner, stage.name)
    return describe(folder, fast, _positions(config), SimpleNamespace(**config | labels))


def _fast_tokenizer(inner: Path, wanted_by: str) -> Any:
    """The tokenizer, with the attributes that ``TextTokenizer`` reads."""
    if not (inner / "tokenizer.json").is_file():
        transformers = require("transformers", extra="local", wanted_by=wanted_by)
        return transformers.AutoTokenizer.from_pretrained(inner, trust_remote_code=False, local_files_only=True)
    tokenizers = require("tokenizers", extra="local", wanted_by=wanted_by)
    saved = read_object(inner / "tokenizer_config.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(inner / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise file_error(inner / "tokenizer.json", "cannot be read") from error
    limit = saved.get("model_max_length") or 10**9
    return SimpleNamespace(backend_tokenizer=backend, pad_token_id=0, model_input_names=[], model_max_length=limit)


def _positions(config: dict[str, Any]) -> int | None:
    """The longest input that the network has positions for, in tokens; None if the files name no limit."""
    limit = config.get("max_position_embeddings")
    first = config.get("pad_token_id") if config.get("model_type") in _PADDING_FIRST else None
    return limit if limit is None or first is None else limit - first - 1


def _check_device(stage: LocalModel) -> Iterator[Finding]:
    """Check that the device exists. torch is imported only if necessary."""
    if stage.device not in ("auto", "cpu") or stage.dtype == "float16":
        device = usable_device(require("torch", extra="local", wanted_by=stage.name), stage.device, stage.dtype)
        yield Finding.ok("device", f"{device} is available")
