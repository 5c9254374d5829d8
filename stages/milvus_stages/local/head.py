"""The head of a sentence-transformers model: pooling and what else follows the transformer.

The file ``modules.json`` lists the steps; each has a folder with its ``config.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from milvus_stages.local.files import file_error, module_list, read_object

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Pool = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Step = Callable[["torch.Tensor"], "torch.Tensor"]

_OTHER_MODEL = "use another model"
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")


class Head(NamedTuple):
    """The steps from the hidden states of a text's tokens to its vector.

    Args:
        modes: the poolings, whose results are concatenated.
        steps: what is applied to the pooled vectors, in order.
        pools_prompt: whether the tokens of a prompt are pooled.
    """

    modes: tuple[str, ...]
    steps: tuple[Step, ...]
    pools_prompt: bool

    def __call__(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return vectors ``(texts, dim)`` for hidden states ``(texts, tokens, hidden)`` and a mask ``(texts, tokens)``.

        Each text has at least one token, and padding is on the right.
        """
        import torch

        vectors = torch.cat([_POOLS[mode](hidden.float(), mask) for mode in self.modes], dim=-1)
        for step in self.steps:
            vectors = step(vectors)
        return vectors


def read_head(folder: Path, device: torch.device, normalize: bool | None) -> Head:
    """Return the head that a model's files describe.

    Args:
        folder: the model's.
        device: where its weights go.
        normalize: overrides what the files say about unit length, unless it is None.

    Raises:
        StageError: the files name a step that is not supported, or are damaged.
    """
    modules = module_list(folder)
    if modules is None:
        logger.warning("%s has no modules.json; using the mean of the token vectors", folder)
        return Head(("mean",), (normalized,) if normalize else (), pools_prompt=True)
    modes: tuple[str, ...] | None = None
    pools_prompt = True
    steps: list[Step] = []
    for kind, path in modules[1:]:
        if kind == "Pooling" and modes is None:
            config = read_object(path / "config.json")
            modes, pools_prompt = _modes(config, path), bool(config.get("include_prompt", True))
        elif kind == "Dense" and modes is not None:
            steps.append(_dense(path, device))
        elif kind == "Normalize" and modes is not None:
            if normalize is not False:
                steps.append(normalized)
        else:
            raise file_error(folder / "modules.json", f"has a step {kind!r} that is not supported there", _OTHER_MODEL)
    if modes is None:
        raise file_error(folder / "modules.json", "has no Pooling, so a text gets no vector", _OTHER_MODEL)
    if normalize and normalized not in steps[-1:]:
        steps.append(normalized)
    return Head(modes, tuple(steps), pools_prompt)


def output_dim(folder: Path, hidden: int) -> int:
    """Return the dimension of a model's vectors, read without its weights.

    Args:
        folder: the model's.
        hidden: size of the transformer's hidden states.

    Raises:
        StageError: the files are damaged, or name a pooling that is not supported.
    """
    dim = hidden
    for kind, path in (module_list(folder) or [])[1:]:
        config = read_object(path / "config.json")
        if kind == "Pooling":
            dim = hidden * len(_modes(config, path))
        elif kind == "Dense":
            dim = int(config.get("out_features", dim))
    return dim


def normalized(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors at unit length; a zero vector stays zero."""
    import torch

    return torch.nn.functional.normalize(vectors, dim=-1)


def _modes(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given is None:
        # Older files have a key for each pooling, such as `pooling_mode_mean_tokens: true`.
        keys = {mode: [f"pooling_mode_{mode}{end}" for end in ("", "_token", "_tokens")] for mode in _POOLS}
        given = [mode for mode, own in keys.items() if any(config.get(key) for key in own)] or "mean"
    modes = (given,) if isinstance(given, str) else tuple(given)
    for mode in modes:
        if mode not in _POOLS:
            raise file_error(
                path / "config.json",
                f"names the pooling {mode!r}, which is not supported",
                f"use a model with one of {', '.join(_POOLS)}",
            )
    return modes


def _dense(path: Path, device: torch.device) -> Step:
    """A linear layer with its activation, from safetensors."""
    import torch
    from safetensors.torch import load_file

    config = read_object(path / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    beyond = config.get("use_residual") or {config.get("module_input_name"), config.get("module_output_name")} - {
        None,
        "sentence_embedding",
    }
    if beyond or activation not in _ACTIVATIONS:
        raise file_error(
            path / "config.json",
            f"describes a Dense layer of a kind that is not supported (activation {activation})",
            _OTHER_MODEL,
        )
    if not (path / "model.safetensors").is_file():
        raise file_error(path, "has a Dense layer without model.safetensors", "save the model again as safetensors")
    weights = {key: value.to(device).float() for key, value in load_file(path / "model.safetensors").items()}
    weight, bias, act = weights.get("linear.weight"), weights.get("linear.bias"), getattr(torch.nn, activation)()
    if weight is None:
        raise file_error(path / "model.safetensors", "holds no linear.weight")
    return lambda vectors: cast("torch.Tensor", act(torch.nn.functional.linear(vectors, weight, bias)))


def _sum(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (hidden * weights[..., None]).sum(dim=1)


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask * mask.cumsum(dim=1)
    return _sum(hidden, weights) / weights.sum(dim=1, keepdim=True)


_POOLS: dict[str, Pool] = {
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": lambda hidden, mask: hidden.masked_fill(mask[..., None] == 0, float("-inf")).amax(dim=1),
    "mean": lambda hidden, mask: _sum(hidden, mask) / mask.sum(dim=1, keepdim=True),
    "mean_sqrt_len_tokens": lambda hidden, mask: _sum(hidden, mask) / mask.sum(dim=1, keepdim=True).sqrt(),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda hidden, mask: hidden[range(len(hidden)), mask.sum(dim=1) - 1],
}
