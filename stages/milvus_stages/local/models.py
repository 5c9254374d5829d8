"""Local transformer models: loaded once a process, shared by the stages that use them, freed with the last one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PrivateAttr

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Stage, error_text, require
from milvus_stages.local.anytime import Clock, TooLittleMemoryError
from milvus_stages.local.files import Origin, check_files, locate, read_object, sentence_config, transformer_folder
from milvus_stages.local.tokens import Row, TextTokenizer

if TYPE_CHECKING:
    import torch

Kind = Literal["encoder", "classifier"]
DType = Literal["auto", "float32", "float16", "bfloat16"]

_AUTO_CLASS: dict[Kind, str] = {"encoder": "AutoModel", "classifier": "AutoModelForSequenceClassification"}
_LENGTH_OF_LAST_RESORT = 512


class ModelKey(NamedTuple):
    """What two stages must agree in to share a model in memory. A hub revision is part of the folder."""

    folder: str
    kind: Kind
    device: str
    dtype: DType


class _Watch:
    """Looks at the clock of the pass under way before each of the network's layers."""

    def __init__(self) -> None:
        self.clock: Clock | None = None

    def __call__(self, *_: object) -> None:
        if self.clock is not None:
            self.clock.check()


@dataclass(eq=False)
class LoadedModel:
    """A model in memory. Its lock is held for every forward pass, which bounds memory and keeps the cores to one.

    A pass ends where its call has no time left, or was given up, between two layers.
    """

    key: ModelKey
    folder: Path
    network: Any
    tokenizer: TextTokenizer
    device: torch.device
    limit: int
    watch: _Watch
    origin: Origin
    turn: threading.Lock = field(default_factory=threading.Lock)
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0

    @property
    def config(self) -> Any:
        """The network's configuration, as transformers reads it."""
        return self.network.config

    def forward(self, rows: Sequence[Row], clock: Clock) -> tuple[Any, torch.Tensor]:
        """One forward pass, without gradients.

        Args:
            rows: at least one, none longer than ``limit``.
            clock: of the call that the pass is for.

        Returns:
            The network's output and the attention mask ``(rows, longest row)``, 1 for a token and 0 for padding.

        Raises:
            DeadlineError: the time is up, or the call was given up.
            TooLittleMemoryError: the device's memory does not suffice.
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
                    f"{self.device} has too little memory for {texts} of {width} tokens; "
                    f"lower {'max_length' if len(rows) == 1 else 'batch_size or max_length'}"
                ) from error

    @contextmanager
    def _held(self, clock: Clock) -> Iterator[None]:
        """The lock, with the watch on the clock."""
        with ExitStack() as held:
            with clock.holding(self.turn):  # who has had the model comes behind the one who waits here
                held.enter_context(clock.holding(self.lock))
            self.watch.clock = clock
            try:
                yield
            finally:
                self.watch.clock = None


class LocalModel(Stage):
    """Base of the stages that run a transformer in this process."""

    kind: ClassVar[Kind] = "encoder"
    score_neutral: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})

    model: Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH.")]
    revision: Annotated[str | None, Field(description="Branch, tag or commit of a model of the hub.")] = None
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="cpu, cuda, cuda:1, mps; auto takes the fastest."),
    ] = "auto"
    dtype: Annotated[
        DType,
        Field(
            description="Precision of the weights; auto is that of the model's files (on a CPU float32 for float16)."
        ),
    ] = "float32"
    batch_size: Annotated[int, Field(ge=1, description="Texts, or pairs of texts, in a forward pass.")] = 32

    _loaded: LoadedModel | None = PrivateAttr(default=None)

    def setup(self) -> None:
        """Load the model, or share the copy that another stage has loaded."""
        loaded = _borrow(self.model, self.revision, self.kind, self.device, self.dtype, wanted_by=self.name)
        try:
            self.prepare(loaded)
        except BaseException:
            _give_back(loaded)
            raise
        self._loaded = loaded

    def teardown(self) -> None:
        """Let go of the model; the last stage that does frees its memory."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            _give_back(loaded)

    def identity(self) -> Mapping[str, Any]:
        """The model, the files that it was read from (a commit of the hub, or a digest), and its precision in memory.

        The device is left out: on another one scores differ in their last digits, as they do between batches.
        """
        precision = str(self.loaded.network.dtype).removeprefix("torch.")
        return {"model": self.model, "revision": self.loaded.origin.revision(), "dtype": precision}

    def prepare(self, loaded: LoadedModel) -> None:
        """Read from the model's files what the stage goes by. Raises StageError where the model does not fit."""

    @property
    def loaded(self) -> LoadedModel:
        """The model. StageError where the stage is not open."""
        if self._loaded is None:
            raise StageError(f"{self.name} is not open", "call open() first, or run it in a pipeline")
        return self._loaded


_models: dict[ModelKey, LoadedModel] = {}
_models_lock = threading.Lock()


def _borrow(model: str, revision: str | None, kind: Kind, device: str, dtype: DType, *, wanted_by: str) -> LoadedModel:
    torch = require("torch", extra="local", wanted_by=wanted_by)
    transformers = require("transformers", extra="local", wanted_by=wanted_by)
    where = usable_device(torch, device, dtype)
    folder = locate(model, revision, wanted_by=wanted_by)
    key = ModelKey(str(folder), kind, str(where), dtype)
    with _models_lock:
        if key not in _models:
            _models[key] = _load(torch, transformers, key, folder, model)
        _models[key].users += 1
        return _models[key]


def _give_back(loaded: LoadedModel) -> None:
    with _models_lock:
        loaded.users -= 1
        if loaded.users == 0:
            del _models[loaded.key]


def usable_device(torch: Any, device: str, dtype: DType) -> Any:
    """The device, checked to be there; ``cuda`` gets its number, so that ``cuda`` and ``cuda:0`` share models.

    Raises:
        StageError: it is not there, or does not take the precision.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if cuda else 0
        if int(number or 0) >= count:
            there = f"torch sees {count} CUDA device{'s' * (count != 1)}"
            raise StageError(
                f"device: {device!r} is not available ({there})", "take 'cpu' or 'auto'", reason_code="config"
            )
        device = f"cuda:{number or torch.cuda.current_device()}"
    if kind == "mps" and not mps:
        raise StageError("device: 'mps' is not available on this machine", "take 'cpu' or 'auto'", reason_code="config")
    if device == "cpu" and dtype == "float16":
        raise StageError(
            "dtype: float16 is for GPUs", "on a CPU take float32, or bfloat16 to halve the memory", reason_code="config"
        )
    return torch.device(device)


def _load(torch: Any, transformers: Any, key: ModelKey, folder: Path, model: str) -> LoadedModel:
    """Read tokenizer and weights into memory.

    Raises:
        StageError: the files are no model of this kind, damaged, or need code of their own.
    """
    inner = transformer_folder(folder)
    check_files(inner, model)
    origin = Origin(folder)
    config = read_object(inner / "config.json")
    check_architecture(model, key.kind, config)
    device = torch.device(key.device)
    try:
        with _quiet(transformers):
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
            raise StageError(
                f"{model!r} needs Python code that comes with its files, which is never run",
                f"take a model whose architecture transformers itself has ({error_text(error)})",
            ) from error
        raise StageError(f"{model!r} cannot be loaded from {inner}: {error_text(error)}") from error
    _check_weights(model, key.kind, network, report)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise StageError(
            "its tokenizer has no fast version (tokenizer.json), and only these are supported", place=f"{model!r}"
        )
    if device.type == "cpu" and network.dtype == torch.float16:
        network = network.float()
    network.config.use_cache = False  # what a decoder keeps for its next token is of no use here
    network = network.to(device).eval()
    texts = TextTokenizer(tokenizer, lower=bool(sentence_config(folder).get("do_lower_case")))
    limits = [limit for limit in (texts.limit, _positions(torch, network)) if limit]
    limit = min(limits, default=_LENGTH_OF_LAST_RESORT)
    return LoadedModel(key, folder, network, texts, device, limit, _watched(torch, network), origin)


def _watched(torch: Any, network: Any) -> _Watch:
    """The watch of the network's layers. It knows nothing of the network, so that both are freed with the model."""
    watch = _Watch()
    for module in network.modules():
        for layer in module if isinstance(module, torch.nn.ModuleList) else ():
            layer.register_forward_pre_hook(watch)
    return watch


def check_architecture(model: str, kind: Kind, config: Mapping[str, Any]) -> None:
    """Raise StageError where a model's config.json says that it is no classifier, but one is wanted."""
    architectures = config.get("architectures") or []
    if kind == "classifier" and architectures and not any("ForSequenceClass" in name for name in architectures):
        raise _no_classifier(model, architectures)


def _check_weights(model: str, kind: Kind, network: Any, report: dict[str, Any]) -> None:
    """Refuse a network that transformers has completed with random numbers."""
    # The pooler of an encoder is not used here, and many encoders are saved without it.
    missing = sorted(name for name in report["missing_keys"] if kind != "encoder" or not name.startswith("pooler."))
    if missing and kind == "classifier":
        raise _no_classifier(model, [f"one that lacks {missing[0]!r}"])
    wrong = missing or sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise StageError(
            f"the weights do not fit the configuration, first at {wrong[0]!r}",
            "its files are damaged",
            place=f"{model!r}",
        )
    if getattr(network.config, "is_encoder_decoder", False):
        raise StageError(f"{model!r} is an encoder-decoder ({network.config.model_type}), which is not supported")


def _no_classifier(model: str, architectures: Sequence[str]) -> StageError:
    return StageError(
        (f"{model!r} is not a sequence-classification checkpoint, its architecture is {', '.join(architectures)}"),
        (
            "take a cross-encoder such as cross-encoder/ms-marco-MiniLM-L-6-v2 or "
            "BAAI/bge-reranker-v2-m3 (rerankers built on a generating model are not supported)"
        ),
    )


def _positions(torch: Any, network: Any) -> int | None:
    """The longest input that the network has positions for, in tokens; None where it knows no limit."""
    for module in network.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, torch.nn.Embedding):
            # RoBERTa and its kin number positions from the padding token's id on: the first are never used.
            padding = getattr(module, "padding_idx", None)
            return int(positions.num_embeddings) - (padding + 1 if isinstance(padding, int) else 0)
    limit = getattr(network.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and notes off stderr for a while; called under the lock of the models."""
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
    """Tokens that an input may have, with its special tokens.

    Args:
        loaded: the model.
        given: what the stage was told; None for what the model's files say.
        specials: number of special tokens of an input.
        field: the stage's field that says so, for messages.

    Raises:
        StageError: the model has no positions for that many, or nothing is left for the text.
    """
    own = sentence_config(loaded.folder).get("max_seq_length")
    length = given or min(own or loaded.limit, loaded.limit)
    if length > loaded.limit:
        raise StageError(
            f"is {length}, but the model takes {loaded.limit} tokens at most", place=str(field), reason_code="config"
        )
    if length <= specials:
        raise StageError(
            f"must be above {specials}, the number of special tokens, is {length}",
            place=str(field),
            reason_code="config",
        )
    return length
