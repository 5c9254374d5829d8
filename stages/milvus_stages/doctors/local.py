"""The doctor's checks of stages that run a local model. They read its files, never its weights."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

from milvus_pipeline import StageError
from milvus_pipeline.plugin import CheckContext, Finding, doctor, require, share_text
from milvus_stages.encode.encoder import Encode
from milvus_stages.local.files import (
    check_files,
    file_error,
    locate_here,
    read_object,
    sentence_config,
    transformer_folder,
)
from milvus_stages.local.head import output_dim
from milvus_stages.local.models import (
    DEFAULT_LENGTH,
    LoadedModel,
    LocalModel,
    check_architecture,
    max_length_of,
    usable_device,
)
from milvus_stages.local.pair_reranker import LocalReranker
from milvus_stages.local.tokens import TextTokenizer
from milvus_stages.rerank.pymilvus_model import PymilvusModel

QUERY_TOKENS: Final = 16
"""The assumed length of a query."""

_PADDING_FIRST: Final = ("roberta", "camembert", "mpnet", "data2vec-text", "xlm-roberta")
"""Model types that number positions from the padding token's id on."""


class ModelFiles(NamedTuple):
    """A model without its weights; has the attributes of ``LoadedModel`` that ``prepare`` reads.

    Args:
        folder: the model's.
        tokenizer: counts its tokens.
        limit: largest number of tokens of an input.
        config: the network's labels.
        hidden: size of its hidden states; None if the files do not say.
    """

    folder: Path
    tokenizer: TextTokenizer
    limit: int
    config: Any
    hidden: int | None


@doctor(Encode)
def encoder_findings(stage: Encode, context: CheckContext) -> Iterator[Finding]:
    """Check an encoder, and leave the dimension of its vectors in the context."""
    files = yield from _find_files(stage)
    if files is None:
        return
    specials = files.tokenizer.specials
    try:
        dim = output_dim(files.folder, files.hidden) if files.hidden else None
        tokens = max_length_of(_as_loaded(files), stage.max_length, specials) - specials
    except StageError as error:
        yield Finding.of(error, error.place or "model")
        return
    if dim is not None:
        context.dim, context.dim_of = dim, f"{stage.name} ({stage.model})"
    vectors = f"vectors of {dim}" if dim is not None else "vectors (its files do not say how long)"
    yield Finding.ok("model", f"{stage.model} is here: {vectors}, from the first {tokens:,} tokens of a text")
    yield from _check_device(stage)


@doctor(LocalReranker)
def reranker_findings(stage: LocalReranker, context: CheckContext) -> Iterator[Finding]:
    """Check a reranker, and count the documents that are too long for it."""
    files = yield from _find_files(stage)
    if files is None:
        return
    trial = stage.model_copy()  # `prepare` writes to the stage, which must not change
    try:
        trial.prepare(_as_loaded(files))
    except StageError as error:
        yield Finding.of(error, error.place or "model")
        return
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
    try:
        stage.resolve()
    except StageError as error:
        yield Finding.of(error, error.place or "function")
        return
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


def _find_files(stage: LocalModel) -> Generator[Finding, None, ModelFiles | None]:
    """Yield what keeps the model from being used, or return its files."""
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            try:
                require(package, extra="local", wanted_by=stage.name)
            except StageError as error:
                yield Finding.of(error, "packages")
                return None
    try:
        folder = locate_here(stage.model, stage.revision, wanted_by=stage.name)
        if folder is None:
            yield _not_here(stage)
            return None
        return read_files(folder, stage)
    except StageError as error:
        yield Finding.of(error, error.place or "model")
        return None


def _not_here(stage: LocalModel) -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    why = "and HF_HUB_OFFLINE prevents its download" if offline else "so it is downloaded when the stage opens"
    step = "open the pipeline once where the hub can be reached, or name a local folder, or package:NAME/PATH"
    return Finding("error" if offline else "warning", "model", f"{stage.model!r} is not on this machine, {why}", step)


def read_files(folder: Path, stage: LocalModel) -> ModelFiles:
    """Read a model's small files.

    Raises:
        StageError: some are missing or damaged, or it is not a model of the stage's kind.
    """
    inner = transformer_folder(folder)
    check_files(inner)
    config = read_object(inner / "config.json")
    check_architecture(stage.model, stage.kind, config)
    names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    labels = SimpleNamespace(num_labels=len(names) or int(config.get("num_labels", 2)), id2label=names)
    tokenizer = TextTokenizer(_fast_tokenizer(inner, stage.name), lower=_lowers(folder))
    limits = [limit for limit in (tokenizer.limit, _positions(config)) if limit]
    hidden = next((config[key] for key in ("hidden_size", "d_model", "dim", "n_embd") if key in config), None)
    return ModelFiles(folder, tokenizer, min(limits, default=DEFAULT_LENGTH), labels, hidden)


def _lowers(folder: Path) -> bool:
    return bool(sentence_config(folder).get("do_lower_case"))


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
    if not isinstance(limit, int) or limit <= 0:
        return None
    first = config.get("pad_token_id") if str(config.get("model_type")) in _PADDING_FIRST else None
    return limit - (first + 1 if isinstance(first, int) else 0)


def _check_device(stage: LocalModel) -> Iterator[Finding]:
    """Check that the device exists. torch is imported only if necessary."""
    if stage.device in ("auto", "cpu") and stage.dtype != "float16":
        return
    try:
        found = usable_device(require("torch", extra="local", wanted_by=stage.name), stage.device, stage.dtype)
    except StageError as error:
        yield Finding.of(error, "device")
    else:
        yield Finding.ok("device", f"{found} is available")


def _as_loaded(files: ModelFiles) -> LoadedModel:
    """The files in place of a model in memory, for code that reads no weights."""
    return cast("LoadedModel", files)
