"""Local transformer models: loaded once per process, shared by the stages that use them, freed with the last one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Shared, Stage, error_text, require
from milvus_stages.local.anytime import Clock, Threads, TooLittleMemoryError
from milvus_stages.local.files import (
    Origin,
    check_files,
    field_error,
    locate,
    model_error,
    read_object,
    sentence_config,
    transformer_folder,
)
from milvus_stages.local.tokens import Row, TextTokenizer

if TYPE_CHECKING:
    import torch

Kind = Literal["encoder", "classifier"]
DType = Literal["auto", "float32", "float16", "bfloat16"]
ModelName = Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH.")]

_DEFAULT_LENGTH = 512
"""Tokens of an input if the model's files name no limit."""

_AUTO_CLASS: dict[Kind, str] = {"encoder": "AutoModel", "classifier": "AutoModelForSequenceClassification"}
_WAITING_CALLS = 8  # of event loops, at once; others queue for a thread, which is as good as waiting for the model
_loading = threading.Lock()  # transformers' log settings, which loading changes for a moment, are global
_clock: ContextVar[Clock] = ContextVar("_clock")  # of the forward pass that is running


@dataclass(eq=False)
class ModelFiles:
    """A model as far as its small files describe it.

    Args:
        folder: the model's.
        tokenizer: the model's.
        limit: largest number of tokens of an input.
        config: the network's configuration, with ``num_labels`` and ``id2label``.
    """

    folder: Path
    tokenizer: TextTokenizer
    limit: int
    config: Any


@dataclass(eq=False)
class LoadedModel(ModelFiles):
    """A model in memory. Its lock is held for each forward pass, which bounds memory and keeps the cores to one pass.

    If its call runs out of time or is cancelled, a pass ends between two layers.
    """

    network: Any
    device: torch.device
    origin: Origin
    turn: threading.Lock = field(default_factory=threading.Lock)
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: Threads = field(default_factory=lambda: Threads(_WAITING_CALLS))

    def forward(self, rows: Sequence[Row], clock: Clock) -> tuple[Any, torch.Tensor]:
        """Run one forward pass, without gradients.

        Args:
            rows: at least one, none longer than ``limit``.
            clock: of the call that the pass is for.

        Returns:
            The network's output and the attention mask ``(rows, longest row)``, 1 for a token and 0 for padding.

        Raises:
            DeadlineError: the time is up, or the call was cancelled.
            TooLittleMemoryError: the device has too little memory.
        """
        import torch

        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [self.tokenizer.pad_id] * (width - len(row.ids)) for row in rows])
        lengths = torch.tensor([len(row.ids) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}
        if self.tokenizer.has_types:
            inputs["token_type_ids"] = torch.tensor([row.types + [0] * (width - len(row.ids)) for row in rows])
        with ExitStack() as held, torch.inference_mode():
            with clock.holding(self.turn):  # a caller that had the model queues behind the one that waits here
                held.enter_context(clock.holding(self.lock))
            held.callback(_clock.reset, _clock.set(clock))
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            try:
                return self.network(**inputs, return_dict=True), inputs["attention_mask"]
            except torch.OutOfMemoryError as error:
                texts = "a text" if len(rows) == 1 else f"{len(rows)} texts"
                raise TooLittleMemoryError(
                    f"{self.device} has too little memory for {texts} of {width} tokens",
                    f"lower {'max_length' if len(rows) == 1 else 'batch_size or max_length'}",
                ) from error


models = Shared[tuple[str, Kind, str, DType], LoadedModel]()
"""The models in memory, by what stages must agree on to share one. A hub revision is part of the folder."""


class LocalModel(Stage):
    """Base of the stages that run a transformer in this process."""

    kind: ClassVar[Kind] = "encoder"
    score_neutral: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})

    model: ModelName
    revision: Annotated[str | None, Field(description="Branch, tag or commit of a model of the hub.")] = None
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="cpu, cuda, cuda:1, mps; auto is the fastest."),
    ] = "auto"
    dtype: Annotated[
        DType,
        Field(
            description="Precision of the weights; auto is that of the model's files (on a CPU, float32 for float16)."
        ),
    ] = "float32"
    batch_size: Annotated[int, Field(ge=1, description="Texts, or pairs of texts, in a forward pass.")] = 32

    _loaded: LoadedModel | None = PrivateAttr(default=None)

    def setup(self) -> None:
        """Load the model, or share the copy that another stage has loaded."""
        torch = require("torch", extra="local", wanted_by=self.name)
        require("transformers", extra="local", wanted_by=self.name)
        device = usable_device(torch, self.device, self.dtype)
        folder = locate(self.model, self.revision, wanted_by=self.name)
        key = (str(folder), self.kind, str(device), self.dtype)
        self._loaded = models.acquire(key, lambda: _load(self.model, folder, self.kind, device, self.dtype))
        try:
            self.prepare(self._loaded)
        except BaseException:
            self.teardown()
            raise

    def teardown(self) -> None:
        """Release the model; the last stage to do so frees its memory."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            models.release(loaded)

    def identity(self) -> Mapping[str, Any]:
        """Return the model, its revision (a commit of the hub, or a digest of the files), and its precision in memory.

        The device is not part of it: on another one scores differ in their last digits, as they do between batches.
        """
        precision = str(self.loaded.network.dtype).removeprefix("torch.")
        return {"model": self.model, "revision": self.loaded.origin.revision, "dtype": precision}

    def prepare(self, loaded: LoadedModel) -> None:
        """Read what the stage needs from the model's files. Raises StageError if the model does not fit the stage."""

    @property
    def loaded(self) -> LoadedModel:
        """The model. Raises StageError if the stage is not open."""
        if self._loaded is None:
            raise StageError(f"{self.name} is not open", "call open() first, or run it in a pipeline")
        return self._loaded


def usable_device(torch: Any, device: str, dtype: DType) -> Any:
    """Return the device, checked to exist; ``cuda`` gets its number, so that ``cuda`` and ``cuda:0`` share models.

    Raises:
        StageError: there is no such device, or it does not support the precision.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device == "auto":
        device = next(kind for kind, count in counts.items() if count)
    kind, _, number = device.partition(":")
    if int(number or 0) >= counts[kind]:
        missing = f"{device!r} is not available ({kind} devices: {counts[kind]})"
        raise field_error("device", missing, "use 'cpu' or 'auto'")
    if kind == "cuda":
        device = f"cuda:{number or torch.cuda.current_device()}"
    if device == "cpu" and dtype == "float16":
        raise field_error("dtype", "float16 is for GPUs", "on a CPU use float32, or bfloat16 to halve the memory")
    return torch.device(device)


def _load(model: str, folder: Path, kind: Kind, device: torch.device, dtype: DType) -> LoadedModel:
    """Read tokenizer and weights into memory.

    Raises:
        StageError: the files are not a model of this kind, are damaged, or need code that comes with them.
    """
    import torch
    import transformers

    origin = Origin(folder)
    inner, config = read_config(model, folder, kind)
    try:
        with _loading, _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(inner, trust_remote_code=False)
            network, report = getattr(transformers, _AUTO_CLASS[kind]).from_pretrained(
                inner,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:
        if "auto_map" in config:
            own_code = f"{model!r} needs Python code that comes with its files, which is never run"
            raise model_error(f"{own_code} ({error_text(error)})") from error
        damaged = f"{model!r} cannot be loaded from {inner}: {error_text(error)}"
        raise model_error(damaged, "check its files, or use another model") from error
    _check_weights(model, kind, network, report)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise model_error(f"the tokenizer of {model!r} has no fast version (tokenizer.json); no other is supported")
    if device.type == "cpu" and network.dtype == torch.float16:
        network = network.float()
    network.config.use_cache = False  # a decoder's cache for its next token is useless here
    network = network.to(device).eval()
    for module in network.modules():
        for layer in module if isinstance(module, torch.nn.ModuleList) else ():
            layer.register_forward_pre_hook(_check_clock)
    files = describe(folder, tokenizer, _positions(torch, network), network.config)
    return LoadedModel(**vars(files), network=network, device=device, origin=origin)


def _check_clock(*_: object) -> None:
    _clock.get().check()


def describe(folder: Path, fast: Any, positions: int | None, config: Any) -> ModelFiles:
    """Return a model's tokenizer, limit and configuration.

    Args:
        folder: the model's.
        fast: its tokenizer; see ``TextTokenizer``.
        positions: the longest input that the network has positions for, in tokens; None if there is no limit.
        config: the network's configuration.
    """
    tokenizer = TextTokenizer(fast, lower=bool(sentence_config(folder).get("do_lower_case")))
    limits = [limit for limit in (tokenizer.limit, positions) if limit and limit > 0]
    return ModelFiles(folder, tokenizer, min(limits, default=_DEFAULT_LENGTH), config)


def read_config(model: str, folder: Path, kind: Kind) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model's transformer, and its config.json.

    Raises:
        StageError: files are missing or damaged, or a classifier is wanted and the model has another architecture.
    """
    inner = transformer_folder(folder)
    check_files(inner)
    config = read_object(inner / "config.json")
    architectures = config.get("architectures") or []
    if kind == "classifier" and architectures and not any("ForSequenceClass" in name for name in architectures):
        raise _no_classifier(model, architectures)
    return inner, config


def _check_weights(model: str, kind: Kind, network: Any, report: dict[str, Any]) -> None:
    """Raise StageError if transformers has filled in missing weights with random numbers."""
    # The pooler of an encoder is not used, and many encoders are saved without it.
    missing = sorted(name for name in report["missing_keys"] if kind != "encoder" or not name.startswith("pooler."))
    if missing and kind == "classifier":
        raise _no_classifier(model, [f"one without {missing[0]!r}"])
    wrong = missing or sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        mismatch = f"the weights of {model!r} do not match its configuration, first at {wrong[0]!r}"
        raise model_error(mismatch, "download or copy its files again")
    if getattr(network.config, "is_encoder_decoder", False):
        raise model_error(f"{model!r} is an encoder-decoder ({network.config.model_type}), which is not supported")


def _no_classifier(model: str, architectures: Sequence[str]) -> StageError:
    return model_error(
        f"{model!r} is not a sequence-classification checkpoint, its architecture is {', '.join(architectures)}",
        "use a cross-encoder such as cross-encoder/ms-marco-MiniLM-L-6-v2 or BAAI/bge-reranker-v2-m3 (rerankers built "
        "on a generative model are not supported)",
    )


def _positions(torch: Any, network: Any) -> int | None:
    """The longest input that the network has positions for, in tokens; None if there is no limit."""
    for module in network.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, torch.nn.Embedding):
            # RoBERTa and its relatives number positions from the padding token's id on: the first are never used.
            padding = getattr(module, "padding_idx", None)
            return int(positions.num_embeddings) - (padding + 1 if isinstance(padding, int) else 0)
    return getattr(network.config, "max_position_embeddings", None)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and notes off stderr while a model loads."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def max_length_of(files: ModelFiles, given: int | None, specials: int, field: str = "max_length") -> int:
    """Return how many tokens an input may have, special tokens included.

    Args:
        files: of the model.
        given: the value of the stage's field; None for what the model's files say.
        specials: number of special tokens of an input.
        field: name of the stage's field, for messages.

    Raises:
        StageError: the model has fewer positions, or no room is left for the text.
    """
    own = sentence_config(files.folder).get("max_seq_length")
    length = given or min(own or files.limit, files.limit)
    if length > files.limit:
        raise field_error(field, f"the model takes {files.limit} tokens at most, got {length}", "lower it")
    if length <= specials:
        raise field_error(field, f"must be above {specials}, the number of special tokens, got {length}", "raise it")
    return length
