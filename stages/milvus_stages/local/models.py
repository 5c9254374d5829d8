"""Local transformer models: loaded once per process, shared by the stages that use them, freed with the last one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

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

DEFAULT_LENGTH = 512
"""Tokens of an input if the model's files name no limit."""

_AUTO_CLASS: dict[Kind, str] = {"encoder": "AutoModel", "classifier": "AutoModelForSequenceClassification"}
_OTHER_DEVICE = "use 'cpu' or 'auto'"
_WAITING_CALLS = 8  # of event loops, at once; others queue for a thread, which is as good as waiting for the model
_loading = threading.Lock()  # transformers' log settings, which loading changes for a moment, are global


class ModelKey(NamedTuple):
    """What two stages must agree on to share a model in memory. A hub revision is part of the folder."""

    folder: str
    kind: Kind
    device: str
    dtype: DType


class _LayerCheck:
    """Checks the clock of the pass that is running before each layer of the network."""

    def __init__(self) -> None:
        self.clock: Clock | None = None

    def __call__(self, *_: object) -> None:
        if self.clock is not None:
            self.clock.check()


@dataclass(eq=False)
class LoadedModel:
    """A model in memory. Its lock is held for each forward pass, which bounds memory and keeps the cores to one pass.

    If its call runs out of time or is cancelled, a pass ends between two layers.
    """

    folder: Path
    network: Any
    tokenizer: TextTokenizer
    device: torch.device
    limit: int
    layer_check: _LayerCheck
    origin: Origin
    turn: threading.Lock = field(default_factory=threading.Lock)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: Threads = field(default_factory=lambda: Threads(_WAITING_CALLS))

    @property
    def config(self) -> Any:
        """The network's configuration, as transformers reads it."""
        return self.network.config

    @property
    def executor(self) -> Executor:
        """Threads for calls from event loops, which may wait long for the lock."""
        return self._threads.executor()

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
        with self._held(clock), torch.inference_mode():
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            try:
                return self.network(**inputs, return_dict=True), inputs["attention_mask"]
            except torch.OutOfMemoryError as error:
                texts = "a text" if len(rows) == 1 else f"{len(rows)} texts"
                raise TooLittleMemoryError(
                    f"{self.device} has too little memory for {texts} of {width} tokens",
                    f"lower {'max_length' if len(rows) == 1 else 'batch_size or max_length'}",
                ) from error

    @contextmanager
    def _held(self, clock: Clock) -> Iterator[None]:
        """The lock, with the clock checked before each layer."""
        with ExitStack() as held:
            with clock.holding(self.turn):  # a caller that had the model queues behind the one that waits here
                held.enter_context(clock.holding(self.lock))
            self.layer_check.clock = clock
            try:
                yield
            finally:
                self.layer_check.clock = None


models = Shared[ModelKey, LoadedModel]()
"""The models in memory."""


class LocalModel(Stage):
    """Base of the stages that run a transformer in this process."""

    kind: ClassVar[Kind] = "encoder"
    score_neutral: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})

    model: Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH.")]
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
        key = ModelKey(str(folder), self.kind, str(device), self.dtype)
        loaded = models.acquire(key, lambda: _load(key, folder, self.model))
        try:
            self.prepare(loaded)
        except BaseException:
            models.release(loaded)
            raise
        self._loaded = loaded

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
        return {"model": self.model, "revision": self.loaded.origin.revision(), "dtype": precision}

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
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if cuda else 0
        if int(number or 0) >= count:
            raise field_error("device", f"{device!r} is not available (CUDA devices: {count})", _OTHER_DEVICE)
        device = f"cuda:{number or torch.cuda.current_device()}"
    if kind == "mps" and not mps:
        raise field_error("device", "'mps' is not available on this machine", _OTHER_DEVICE)
    if device == "cpu" and dtype == "float16":
        raise field_error("dtype", "float16 is for GPUs", "on a CPU use float32, or bfloat16 to halve the memory")
    return torch.device(device)


def _load(key: ModelKey, folder: Path, model: str) -> LoadedModel:
    """Read tokenizer and weights into memory.

    Raises:
        StageError: the files are not a model of this kind, are damaged, or need code that comes with them.
    """
    import torch
    import transformers

    inner = transformer_folder(folder)
    check_files(inner)
    origin = Origin(folder)
    config = read_object(inner / "config.json")
    check_architecture(model, key.kind, config)
    device = torch.device(key.device)
    try:
        with _loading, _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(inner, trust_remote_code=False)
            network, report = getattr(transformers, _AUTO_CLASS[key.kind]).from_pretrained(
                inner,
                dtype="auto" if key.dtype == "auto" else getattr(torch, key.dtype),
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
    _check_weights(model, key.kind, network, report)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise model_error(f"the tokenizer of {model!r} has no fast version (tokenizer.json); no other is supported")
    if device.type == "cpu" and network.dtype == torch.float16:
        network = network.float()
    network.config.use_cache = False  # a decoder's cache for its next token is useless here
    network = network.to(device).eval()
    texts = TextTokenizer(tokenizer, lower=bool(sentence_config(folder).get("do_lower_case")))
    limits = [limit for limit in (texts.limit, _positions(torch, network)) if limit]
    limit = min(limits, default=DEFAULT_LENGTH)
    return LoadedModel(folder, network, texts, device, limit, _checked_layers(torch, network), origin)


def _checked_layers(torch: Any, network: Any) -> _LayerCheck:
    """Hook a check before each layer. It does not refer to the network, so both are freed with the model."""
    check = _LayerCheck()
    for module in network.modules():
        for layer in module if isinstance(module, torch.nn.ModuleList) else ():
            layer.register_forward_pre_hook(check)
    return check


def check_architecture(model: str, kind: Kind, config: Mapping[str, Any]) -> None:
    """Raise StageError if a classifier is wanted, but the model's config.json names another architecture."""
    architectures = config.get("architectures") or []
    if kind == "classifier" and architectures and not any("ForSequenceClass" in name for name in architectures):
        raise _no_classifier(model, architectures)


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
    limit = getattr(network.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and notes off stderr while a model loads."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def max_length_of(loaded: LoadedModel, given: int | None, specials: int, field: str = "max_length") -> int:
    """Return how many tokens an input may have, special tokens included.

    Args:
        loaded: the model.
        given: the value of the stage's field; None for what the model's files say.
        specials: number of special tokens of an input.
        field: name of the stage's field, for messages.

    Raises:
        StageError: the model has fewer positions, or no room is left for the text.
    """
    own = sentence_config(loaded.folder).get("max_seq_length")
    length = given or min(own or loaded.limit, loaded.limit)
    if length > loaded.limit:
        raise field_error(field, f"the model takes {loaded.limit} tokens at most, got {length}", "lower it")
    if length <= specials:
        raise field_error(field, f"must be above {specials}, the number of special tokens, got {length}", "raise it")
    return length
