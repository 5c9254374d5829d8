"""Rows of token ids for texts and pairs, without the tokenizer's own padding and truncation.

Each text is tokenized once, however many pairs it is part of, and cut as a list of ids; special tokens are added
afterwards. The result equals what the tokenizer gives for the whole pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from milvus_stages.local.files import model_error

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Ids = list[int]

_CHARACTERS_AT_ONCE = 50_000  # a few milliseconds; bounds the memory of encodings, a hundred times that of the ids
_SIMILAR = 0.75  # of the longest row of a batch
_FULL_PASS = 512  # tokens: the fixed cost of a pass is small beside theirs


class Tokens(NamedTuple):
    """The first token ids of a text, and the number of all its tokens."""

    ids: Ids
    length: int

    @property
    def cut(self) -> bool:
        """Whether some tokens were left out."""
        return self.length > len(self.ids)


class Row(NamedTuple):
    """The input of a model for one text or pair: token ids, and as many token type ids."""

    ids: Ids
    types: Ids


class _Piece(NamedTuple):
    """Adjacent special tokens, and the type of the text's tokens after them."""

    ids: Ids
    types: Ids
    next_type: int


class TextTokenizer:
    """A fast tokenizer. It never changes, so threads may share it.

    Attributes:
        pad_id: the id of padding.
        has_types: whether the model reads token type ids.
        limit: the longest input, in tokens; None for no limit.
        specials: number of special tokens around a single text.
        pair_specials: number of special tokens around a pair.
        text_start: index of a single text's first own token in its row.

    Args:
        fast: a ``PreTrainedTokenizerFast`` of transformers, which belongs to this object from now on.
        lower: convert texts to lower case first, whatever the tokenizer does afterwards.

    Raises:
        StageError: the tokenizer is damaged.
    """

    def __init__(self, fast: Any, *, lower: bool = False) -> None:
        self._backend: Tokenizer = fast.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        if lower:
            from tokenizers import normalizers

            own = self._backend.normalizer
            self._backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])
        self.pad_id: int = fast.pad_token_id if fast.pad_token_id is not None else 0
        self.has_types = "token_type_ids" in fast.model_input_names
        # transformers writes "no limit" as a very large number.
        self.limit: int | None = fast.model_max_length if fast.model_max_length < 10**9 else None
        probe, other = self._encoded(["a", "a"])
        if not probe.ids:
            damaged = "the tokenizer has no token for the letter 'a', not even an unknown one"
            raise model_error(damaged, "copy or download it again")
        self._pair = self._pieces(self._backend.post_process(probe, other), [len(probe.ids)] * 2)
        self._single = self._pieces(self._backend.post_process(probe), [len(probe.ids)])
        self.pair_specials = sum(len(piece.ids) for piece in self._pair)
        self.specials = sum(len(piece.ids) for piece in self._single)
        self.text_start = len(self._single[0].ids)

    def tokens(self, texts: Sequence[str], limit: int, check: Callable[[], None] | None = None) -> list[Tokens]:
        """Return the first ``limit`` tokens of each text, special ones not included.

        Args:
            texts: any number of them.
            limit: tokens to keep of each text.
            check: called between parts of the work, which it may end by raising.
        """
        found: list[Tokens] = []
        for part in _parts(texts):
            if check is not None:
                check()
            found += [Tokens(ids[:limit], len(ids)) for ids in (encoding.ids for encoding in self._encoded(part))]
        return found

    def decode(self, ids: Sequence[Ids]) -> list[str]:
        """Return the texts of the ids, with the tokenizer's name for an unknown token."""
        return self._backend.decode_batch(list(ids), skip_special_tokens=False)

    def row(self, ids: Ids) -> Row:
        """Return a text with its special tokens."""
        return self._joined(self._single, [ids])

    def pair_row(self, first: Ids, second: Ids) -> Row:
        """Return a pair of texts with its special tokens."""
        return self._joined(self._pair, [first, second])

    def _joined(self, pieces: Sequence[_Piece], texts: Sequence[Ids]) -> Row:
        ids: Ids = []
        types: Ids = []
        for piece, text in zip(pieces, texts, strict=False):
            ids += piece.ids + text
            types += piece.types + [piece.next_type] * len(text)
        row = Row(ids + pieces[-1].ids, types + pieces[-1].types)
        # Without special tokens the row of an empty text would be empty, which no model reads.
        return row if row.ids else Row([self.pad_id], [0])

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            return self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # a lone surrogate is not a character
            return self._backend.encode_batch_fast([_well_formed(text) for text in texts], add_special_tokens=False)

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
    """Yield positions of rows in groups of at most ``size`` rows of similar length, the longest first.

    With the longest first, a batch that does not fit into memory fails at once. A batch that fills a pass takes no row
    that would largely be padding.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        longest = lengths[batch[0]] if batch else 0
        padded = lengths[position] < _SIMILAR * longest and len(batch) * longest >= _FULL_PASS
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


def _well_formed(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
