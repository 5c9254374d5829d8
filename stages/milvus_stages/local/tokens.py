"""Texts to rows of token ids, as a model's own tokenizer makes them, without its padding and truncation.

Each text is tokenized once, however many pairs it is part of, and cut as a list of ids; the special tokens are put
around it afterwards. The result is what the tokenizer gives for the pair as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from milvus_pipeline import StageError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Ids = list[int]

_CHARACTERS_AT_ONCE = 50_000  # some milliseconds; bounds the memory of encodings, a hundred times that of the ids
_ALIKE = 0.75  # of the longest row of a batch
_WORTH_A_PASS = 512  # tokens: what a pass costs beside them hardly counts


class Tokens(NamedTuple):
    """A text's token ids, as far as they may reach the model, and how many it has in all."""

    ids: Ids
    length: int

    @property
    def cut(self) -> bool:
        """True where some were left out."""
        return self.length > len(self.ids)


class Row(NamedTuple):
    """The input of a model for one text or pair: token ids and token type ids, equally many."""

    ids: Ids
    types: Ids


class _Piece(NamedTuple):
    """Special tokens that stand together, and the type of the text's tokens after them."""

    ids: Ids
    types: Ids
    next_type: int


class TextTokenizer:
    """A fast tokenizer, its settings taken over once. Immutable afterwards, so threads may share it.

    Args:
        fast: a ``PreTrainedTokenizerFast`` of transformers, which from now on belongs to this object.
        lower: put texts into lower case first, whatever the tokenizer does afterwards.
    """

    def __init__(self, fast: Any, *, lower: bool = False) -> None:
        self.backend: Tokenizer = fast.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        if lower:
            _put_lowercase_first(self.backend)
        self.pad_id: int = fast.pad_token_id if fast.pad_token_id is not None else 0
        self.has_types = "token_type_ids" in fast.model_input_names
        # transformers says "no limit" by a number above any length.
        self.limit: int | None = fast.model_max_length if fast.model_max_length < 10**9 else None
        probe, other = self._encoded(["a", "a"])
        if not probe.ids:
            raise StageError("the tokenizer has no token for the letter 'a', not even an unknown one", "it is damaged")
        self._pair = self._pieces(self.backend.post_process(probe, other), [len(probe.ids)] * 2)
        self._single = self._pieces(self.backend.post_process(probe), [len(probe.ids)])

    @property
    def specials(self) -> int:
        """Number of special tokens around a single text."""
        return sum(len(piece.ids) for piece in self._single)

    @property
    def pair_specials(self) -> int:
        """Number of special tokens around a pair."""
        return sum(len(piece.ids) for piece in self._pair)

    def tokens(self, texts: Sequence[str], limit: int, check: Callable[[], None] | None = None) -> list[Tokens]:
        """The first ``limit`` tokens of each text, without special tokens; ``check`` may end the work by raising."""
        found = []
        for part in _parts(texts):
            if check is not None:
                check()
            for encoding in self._encoded(part):
                ids = encoding.ids
                found.append(Tokens(ids[:limit], len(ids)))
        return found

    def decoded(self, ids: Sequence[Ids]) -> list[str]:
        """The texts that the ids stand for; an unknown token reads as the tokenizer's sign for it."""
        return self.backend.decode_batch(list(ids), skip_special_tokens=False)

    def row(self, ids: Ids) -> Row:
        """A text with its special tokens."""
        return self._joined(self._single, [ids])

    def pair_row(self, first: Ids, second: Ids) -> Row:
        """A pair of texts with its special tokens."""
        return self._joined(self._pair, [first, second])

    @property
    def text_start(self) -> int:
        """Place of a single text's first own token in its row."""
        return len(self._single[0].ids)

    def _joined(self, pieces: Sequence[_Piece], texts: Sequence[Ids]) -> Row:
        ids: Ids = []
        types: Ids = []
        for piece, text in zip(pieces, texts, strict=False):
            ids += piece.ids + text
            types += piece.types + [piece.next_type] * len(text)
        row = Row(ids + pieces[-1].ids, types + pieces[-1].types)
        # A model without special tokens still needs something to read where the text is empty.
        return row if row.ids else Row([self.pad_id], [0])

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            return self.backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # a lone surrogate, which is no character, cannot be passed on
            return self.backend.encode_batch_fast([_well_formed(text) for text in texts], add_special_tokens=False)

    @staticmethod
    def _pieces(probe: Encoding, lengths: Sequence[int]) -> list[_Piece]:
        """The special tokens before, between and after the texts of a probe whose texts have these lengths."""
        pieces = []
        start = 0
        special = probe.special_tokens_mask
        for length in lengths:
            end = special.index(0, start)
            pieces.append(_Piece(probe.ids[start:end], probe.type_ids[start:end], probe.type_ids[end]))
            start = end + length
        pieces.append(_Piece(probe.ids[start:], probe.type_ids[start:], 0))
        return pieces


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions of rows in groups of at most ``size`` and of similar length, the longest first.

    The longest first, so that a batch that does not fit into memory fails at once and not after a while. A batch that
    is worth its pass takes no row that would be padding for a good part.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        longest = lengths[batch[0]] if batch else 0
        padded = lengths[position] < _ALIKE * longest and len(batch) * longest >= _WORTH_A_PASS
        if batch and (len(batch) == size or padded):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in parts of bounded size."""
    start = size = 0
    for position, text in enumerate(texts):
        if size and size + len(text) > _CHARACTERS_AT_ONCE:
            yield texts[start:position]
            start, size = position, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]


def _put_lowercase_first(backend: Tokenizer) -> None:
    from tokenizers.normalizers import Lowercase, Sequence

    own = backend.normalizer
    backend.normalizer = Lowercase() if own is None else Sequence([Lowercase(), own])


def _well_formed(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
