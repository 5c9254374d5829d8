"""Small random models with working tokenizers, saved as transformers and sentence-transformers save theirs.

The weights come from a fixed seed and are spread widely, so that different texts get clearly different scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = """
a the of in is and or where what red green blue apple pear plum jam sky sea wing flow heat plate pressure speed machine
intelligence conference 1956 history question answer search vector index milvus rank document
"""
WORDS = VOCABULARY.split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
ENDINGS = ("s", "ing", "ed", "er", "ly", "tion")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def bert_classifier(
    folder: Path,
    *,
    labels: Sequence[str] = ("relevance",),
    positions: int = 512,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A BertForSequenceClassification; ``config`` are further keys of its config.json."""
    tokenizer = _bert_tokenizer(positions)
    made = transformers.BertConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        initializer_range=0.3,
    )
    _save(folder, transformers.BertForSequenceClassification, made, tokenizer)
    return with_config(folder, config or {})


def xlm_roberta_classifier(folder: Path, *, positions: int = 514) -> Path:
    """An XLMRobertaForSequenceClassification with one label; takes ``positions - 2`` tokens, and no token types."""
    tokenizer = _unigram_tokenizer(positions - 2)
    made = transformers.XLMRobertaConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        type_vocab_size=1,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    _save(folder, transformers.XLMRobertaForSequenceClassification, made, tokenizer)
    return folder


def encoder(
    folder: Path,
    *,
    pooling: Mapping[str, Any] | None = None,
    modules: Sequence[str] = ("Transformer", "Pooling", "Normalize"),
    prompts: Mapping[str, str] | None = None,
    max_seq_length: int = 64,
    lower: bool = False,
) -> Path:
    """A BertModel as sentence-transformers saves it; ``pooling`` is the content of its pooling's config.json."""
    tokenizer = _bert_tokenizer(128)
    made = transformers.BertConfig(
        **SIZES, vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.3
    )
    _save(folder, transformers.BertModel, made, tokenizer)
    listed = []
    for number, name in enumerate(modules):
        path = "" if name == "Transformer" else f"{number}_{name}"
        (folder / path).mkdir(exist_ok=True)
        listed.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        )
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": lower})
    write_json(folder / "config_sentence_transformers.json", {"prompts": dict(prompts or {})})
    for path in folder.glob("*_Pooling"):
        mode = {"pooling_mode_mean_tokens": True} if pooling is None else dict(pooling)
        write_json(path / "config.json", {"word_embedding_dimension": SIZES["hidden_size"], **mode})
    for path in folder.glob("*_Dense"):
        _save_dense(path, SIZES["hidden_size"], 8)
    return folder


def with_config(folder: Path, values: Mapping[str, Any]) -> Path:
    """Set keys of a model's config.json."""
    path = folder / "config.json"
    write_json(path, {**json.loads(path.read_text()), **values})
    return folder


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON."""
    path.write_text(json.dumps(data))


def _bert_tokenizer(limit: int) -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, "?", ".", ","]
    pieces += [f"##{piece}" for piece in (*ENDINGS, *LETTERS)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=limit)


def _unigram_tokenizer(limit: int) -> Any:
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(f"▁{word}", -3.0) for word in WORDS if len(word) > 1]
    pieces += [(ending, -4.0) for ending in ENDINGS if len(ending) > 1]
    pieces += [(letter, -6.0) for letter in ("▁", *LETTERS, "?", ".", ",")]
    pieces.append(("<mask>", 0.0))
    return transformers.XLMRobertaTokenizer(vocab=pieces, model_max_length=limit)


def _save(folder: Path, kind: Any, config: Any, tokenizer: Any) -> None:
    transformers.utils.logging.disable_progress_bar()
    # The seed is set for this model alone: no test may change the random numbers of another.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_dense(folder: Path, inputs: int, outputs: int) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(21)
    weights = {"linear.weight": torch.randn(outputs, inputs, generator=generator)}
    weights["linear.bias"] = torch.randn(outputs, generator=generator)
    save_file(weights, folder / "model.safetensors")
    activation = "torch.nn.modules.activation.Tanh"
    write_json(
        folder / "config.json",
        {"in_features": inputs, "out_features": outputs, "bias": True, "activation_function": activation},
    )
