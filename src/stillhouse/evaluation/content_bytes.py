"""UTF-8 bytes behind the content targets, the denominator of bits per byte.

Nats per token depend on the tokenizer (longer tokens cost more each); bits per byte do not, so
they compare models with different tokenizers.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from stillhouse.data.document import BoolArray, DocumentSet, Int64Array
from stillhouse.models.tokenizers import vocabulary_size


def content_bytes(
    documents: DocumentSet, tokenizer: PreTrainedTokenizerFast, end_of_turn_ids: frozenset[int]
) -> Int64Array:
    """Return the UTF-8 length of each document's targets other than end-of-turn, int64 [D].

    With a byte-level tokenizer (GPT-2's alphabet, where each character of a token stands for one
    byte) the count is exact, also where a character is split over tokens and a mask cuts it.
    Others are decoded span by span, where a split character counts as U+FFFD (3 bytes).
    """
    content = documents.mask & ~np.isin(documents.tokens, sorted(end_of_turn_ids))
    if not is_byte_level(tokenizer):
        return np.array([_decoded_bytes(documents, i, content, tokenizer) for i in range(len(documents))], np.int64)
    bytes_before = np.zeros(len(documents.tokens) + 1, np.int64)
    np.cumsum(np.where(content, _token_bytes(tokenizer)[documents.tokens], 0), out=bytes_before[1:])
    return np.diff(bytes_before[documents.offsets])


def is_byte_level(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether tokens are written in the byte-level alphabet, told by the decoder."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return False
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    return any(part["type"] == "ByteLevel" for part in state.get("decoders", [state]))


def _token_bytes(tokenizer: PreTrainedTokenizerFast) -> Int64Array:
    """Bytes of every id of a byte-level tokenizer, int64 [V]; added tokens are plain text."""
    sizes = np.zeros(vocabulary_size(tokenizer), np.int64)
    for token, token_id in tokenizer.get_vocab().items():
        sizes[token_id] = len(token)
    for token_id, added in tokenizer.added_tokens_decoder.items():
        sizes[token_id] = len(added.content.encode())
    return sizes


def _decoded_bytes(documents: DocumentSet, index: int, content: BoolArray, tokenizer: PreTrainedTokenizerFast) -> int:
    """Bytes of the document's runs of content tokens, each decoded by itself."""
    start, stop = documents.offsets[index], documents.offsets[index + 1]
    chosen = np.flatnonzero(content[start:stop])
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1) if len(chosen) else []
    tokens = documents.tokens[start:stop]
    return sum(_text_bytes(tokenizer, tokens[run].tolist()) for run in runs)


def _text_bytes(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> int:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return len(text.encode())
