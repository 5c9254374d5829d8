"""What ``milvus-pipeline doctor`` looks at in a local model: its files, never its weights."""

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
from milvus_stages.local.files import check_files, locate_here, read_object, sentence_config, transformer_folder
from milvus_stages.local.head import output_dim
from milvus_stages.local.models import LoadedModel, LocalModel, check_architecture, max_length_of, usable_device
from milvus_stages.local.pair_reranker import LocalReranker
from milvus_stages.local.tokens import TextTokenizer

QUERY_TOKENS: Final = 16
"""A query is taken to have so many."""

_LENGTH_OF_LAST_RESORT: Final = 512
_PADDING_FIRST: Final = ("roberta", "camembert", "mpnet", "data2vec-text", "xlm-roberta")
"""Kinds of model that number positions from behind the padding token's id."""


class ModelFiles(NamedTuple):
    """A model as far as its small files tell; has what ``LoadedModel`` has beside the weights.

    Args:
        folder: the model's.
        tokenizer: counts its tokens.
        limit: tokens of an input, at most.
        config: labels of the network.
        hidden: size of its hidden states; None where the files do not say.
    """

    folder: Path
    tokenizer: TextTokenizer
    limit: int
    config: Any
    hidden: int | None


@doctor(Encode)
def encoder_findings(stage: Encode, context: CheckContext) -> Iterator[Finding]:
    """What can be said of an encoder; leaves the dimension of its vectors in the context."""
    files = yield from _files(stage)
    if files is None:
        return
    specials = files.tokenizer.specials
    try:
        dim = output_dim(files.folder, files.hidden) if files.hidden else None
        read = max_length_of(_loaded(files), stage.max_length, specials) - specials
    except StageError as error:
        yield Finding.of(error, "model")
        return
    if dim is not None:
        context.dim, context.dim_of = dim, f"{stage.name} ({stage.model})"
    vectors = f"vectors of {dim}" if dim is not None else "vectors (its files do not say how long)"
    yield Finding.ok("model", f"{stage.model} is here: {vectors}, from the first {read:,} tokens of a text")
    yield from _device(stage)


@doctor(LocalReranker)
def reranker_findings(stage: LocalReranker, context: CheckContext) -> Iterator[Finding]:
    """What can be said of a reranker, and of the documents that would be too long for it."""
    files = yield from _files(stage)
    if files is None:
        return
    trial = stage.model_copy()  # what `prepare` settles is kept in the stage, which shall stay as it is
    try:
        trial.prepare(_loaded(files))
    except StageError as error:
        yield Finding.of(error, "model")
        return
    room = trial.document_room(QUERY_TOKENS)
    beside = f" beside a query of {QUERY_TOKENS}" if trial.document_room(0) != room else ""
    yield Finding.ok("model", f"{stage.model} is here; it reads {room:,} tokens of a document{beside}")
    yield from _device(stage)
    if context.texts:
        lengths = [own.length for own in files.tokenizer.tokens(context.texts, 0)]
        taken = files.tokenizer.pair_specials + (QUERY_TOKENS if beside else 0)
        yield _lengths(lengths, room, context, longer=files.limit > room + taken)


def _lengths(lengths: Sequence[int], room: int, context: CheckContext, *, longer: bool) -> Finding:
    ordered = sorted(lengths)
    sizes = f"the median has {ordered[len(ordered) // 2]:,} tokens, the longest {ordered[-1]:,}"
    cut = sum(length > room for length in lengths)
    if not cut:
        return Finding.ok("documents", f"none of {len(lengths)} sampled documents is too long for it; {sizes}")
    return Finding.warning(
        "documents",
        f"{share_text(cut, len(lengths), context.documents)} are longer than the {room:,} tokens that it reads of one; "
        f"their ends are not read; {sizes}",
        f"split them into passages when you fill the collection, or {'raise max_length, or ' if longer else ''}take a "
        "reranker that reads more",
    )


def _files(stage: LocalModel) -> Generator[Finding, None, ModelFiles | None]:
    """What keeps the model from being used; returns its files where they are here."""
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
        yield Finding.of(error, "model")
        return None


def _not_here(stage: LocalModel) -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    why = "and HF_HUB_OFFLINE keeps it from being fetched" if offline else "so it is downloaded when the stage opens"
    step = "open the pipeline once where the hub can be reached, or name a local folder, or package:NAME/PATH"
    said = f"{stage.model!r} is not on this machine, {why}"
    return Finding.error("model", said, step) if offline else Finding.warning("model", said, step)


def read_files(folder: Path, stage: LocalModel) -> ModelFiles:
    """A model's small files.

    Raises:
        StageError: some are missing or damaged, or it is no model of the stage's kind.
    """
    inner = transformer_folder(folder)
    check_files(inner, stage.model)
    config = read_object(inner / "config.json")
    check_architecture(stage.model, stage.kind, config)
    names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    labels = SimpleNamespace(num_labels=len(names) or int(config.get("num_labels", 2)), id2label=names)
    tokenizer = TextTokenizer(_fast(inner, stage.name), lower=bool(sentence_config(folder).get("do_lower_case")))
    limits = [limit for limit in (tokenizer.limit, _positions(config)) if limit]
    hidden = next((config[key] for key in ("hidden_size", "d_model", "dim", "n_embd") if key in config), None)
    return ModelFiles(folder, tokenizer, min(limits, default=_LENGTH_OF_LAST_RESORT), labels, hidden)


def _fast(inner: Path, wanted_by: str) -> Any:
    """The tokenizer, as far as ``TextTokenizer`` looks at it."""
    if not (inner / "tokenizer.json").is_file():
        transformers = require("transformers", extra="local", wanted_by=wanted_by)
        return transformers.AutoTokenizer.from_pretrained(inner, trust_remote_code=False, local_files_only=True)
    tokenizers = require("tokenizers", extra="local", wanted_by=wanted_by)
    saved = read_object(inner / "tokenizer_config.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(inner / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise StageError(f"{inner / 'tokenizer.json'} cannot be read", "copy or download the model again") from error
    limit = saved.get("model_max_length") or 10**9
    return SimpleNamespace(backend_tokenizer=backend, pad_token_id=0, model_input_names=[], model_max_length=limit)


def _positions(config: dict[str, Any]) -> int | None:
    """The longest input that the network has positions for, in tokens; None where the files name no limit."""
    limit = config.get("max_position_embeddings")
    if not isinstance(limit, int) or limit <= 0:
        return None
    first = config.get("pad_token_id") if str(config.get("model_type")) in _PADDING_FIRST else None
    return limit - (first + 1 if isinstance(first, int) else 0)


def _device(stage: LocalModel) -> Iterator[Finding]:
    """Whether the device is there. torch is asked only where it has to be."""
    if stage.device in ("auto", "cpu") and stage.dtype != "float16":
        return
    try:
        found = usable_device(require("torch", extra="local", wanted_by=stage.name), stage.device, stage.dtype)
    except StageError as error:
        yield Finding.of(error, "device")
    else:
        yield Finding.ok("device", f"{found} is available")


def _loaded(files: ModelFiles) -> LoadedModel:
    """The files in the place of a model in memory, for what reads no weights of it."""
    return cast("LoadedModel", files)
