"""From a text and the characters that are targets to token ids and a loss mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillhouse.data.document import BoolArray, Int32Array, Int64Array
from stillhouse.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]
"""Characters [start, end) of a text."""

Encoded = tuple[Int32Array, BoolArray]
"""Token ids int32 [T] and loss mask bool [T]."""


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the strings that the tokenizer reads as control tokens, with their ids."""
    specials = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return specials | {name: tokenizer.vocab[name] for name in tokenizer.all_special_tokens}


def special_token_pattern(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str]:
    """Return a pattern that finds any control token in a text (nothing, if the tokenizer has none)."""
    longest_first = sorted(special_token_ids(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def beginning_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return what the tokenizer itself puts before a plain text: its BOS token, or nothing."""
    ids = [int(i) for i in tokenizer("")["input_ids"]]
    if len(ids) > 1 or tokenizer.bos_token_id != tokenizer.eos_token_id:
        ids = [i for i in ids if i != tokenizer.eos_token_id]
    return ids


class SpanTokenizer:
    """Tokenizes whole texts and marks the tokens that stand in given spans of characters.

    A text is tokenized once and the spans are mapped by offsets. Where a token begins in the
    template and ends in a span (``"\\n"`` of the header and the first newline of the answer
    merged into one), the text is cut at the span's start and its parts are tokenized apart: the
    generation prompt ends there too, so the model meets the same tokens when it answers. A single
    space before a word (``" Hello"`` after ``"[/INST]"``) belongs to its token and is not cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"tokenizer {tokenizer.name_or_path!r} knows no character offsets, which the loss mask needs;"
                " use its fast version (a folder with tokenizer.json)"
            )
        self._tokenizer = tokenizer
        self._special_ids = np.array(sorted(special_token_ids(tokenizer).values()), np.int64)

    def ids(self, texts: Sequence[str]) -> list[Int32Array]:
        """Return the ids of each text, int32 [T], without a mask and without added special tokens."""
        if not texts:
            return []
        found = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [np.array(ids, np.int32) for ids in found["input_ids"]]

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Encoded]:
        """Return ids and mask of each text; no special tokens are added to it.

        ``spans[i]`` are the target characters of ``texts[i]``, ascending and disjoint. A token is
        a target where it overlaps a span, except a control token that begins before it.
        """
        if not texts:
            return []
        found = self._tokenize(list(texts))
        encoded = []
        for text, text_spans, ids, offsets in zip(
            texts, spans, found["input_ids"], found["offset_mapping"], strict=True
        ):
            tokens, extents = np.array(ids, np.int32), _extents(offsets)
            cuts = self._cuts(text, text_spans, tokens, extents)
            if cuts:
                tokens, extents = self._encode_apart(text, cuts, tokens, extents)
            encoded.append((tokens, self._mask(text_spans, tokens, extents)))
        return encoded

    def _tokenize(self, texts: list[str]) -> Any:
        return self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # long texts are cut later, and counted there
        )

    def _cuts(self, text: str, spans: Sequence[Span], tokens: Int32Array, extents: Int64Array) -> list[int]:
        cuts = []
        for start, end in spans:
            straddling = np.flatnonzero((extents[:, 0] < start) & (start < extents[:, 1]))
            if start < end and any(
                text[extents[i, 0] : start] != " " and tokens[i] not in self._special_ids for i in straddling
            ):
                cuts.append(start)
        return cuts

    def _encode_apart(
        self, text: str, cuts: list[int], tokens: Int32Array, extents: Int64Array
    ) -> tuple[Int32Array, Int64Array]:
        """Tokenize the parts between the cuts apart, unless the tokenizer would then write another text.

        (SentencePiece tokenizers put a space before every text that they are given.)
        """
        bounds = [0, *cuts, len(text)]
        parts = self._tokenize([text[start:end] for start, end in pairwise(bounds)])
        apart = np.concatenate([np.array(ids, np.int32) for ids in parts["input_ids"]])
        if self._decode(apart) != self._decode(tokens):
            return tokens, extents
        shifted = [_extents(o) + start for o, start in zip(parts["offset_mapping"], bounds, strict=False)]
        return apart, np.concatenate(shifted)

    def _decode(self, ids: npt.NDArray[np.int32]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _mask(self, spans: Sequence[Span], tokens: Int32Array, extents: Int64Array) -> BoolArray:
        mask = np.zeros(len(tokens), np.bool_)
        special = np.isin(tokens, self._special_ids)
        starts, ends = extents[:, 0], extents[:, 1]
        for start, end in spans:
            mask |= (ends > start) & (starts < end) & ~(special & (starts < start))
        mask[:1] = False  # nothing predicts the first token
        return mask


def _extents(offsets: Sequence[Span]) -> Int64Array:
    """Return the characters of each token, int64 [T, 2], without gaps.

    Byte-level tokenizers may trim white space from the offsets (a token ``"\\n\\n"`` is then empty),
    so each token is made to begin no later than the one before it ends.
    """
    extents = np.array(offsets, np.int64).reshape(-1, 2)
    extents[1:, 0] = np.minimum(extents[1:, 0], extents[:-1, 1])
    return extents
