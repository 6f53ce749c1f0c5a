"""Which bytes of text each token id stands for.

Two tokenizers have nothing in common but the text they write, so tokens are compared by their UTF-8
bytes: byte-level alphabets (``Ġ``) and SentencePiece's markers (``▁``, ``<0x0A>``) are undone here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKER = "\u2581"
"""SentencePiece's space."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """Return the bytes of every id below V*; None for control tokens, the unknown token and holes.

    Raises ModelError for a tokenizer that is neither byte-level nor of SentencePiece's kind (WordPiece,
    say, which does not know what stood between its tokens).
    """
    vocabulary = tokenizer.get_vocab()
    found: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    parts = _decoder_parts(tokenizer)
    kinds = {part["type"] for part in parts}
    marked = "Metaspace" in kinds or any(
        part["type"] == "Replace" and part.get("pattern") == {"String": MARKER} and part.get("content") == " "
        for part in parts
    )
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()
        for token, index in vocabulary.items():
            found[index] = _bytes_of_alphabet(token, alphabet)
    elif marked:
        for token, index in vocabulary.items():
            byte = _BYTE_TOKEN.fullmatch(token) if "ByteFallback" in kinds else None
            found[index] = bytes([int(byte[1], 16)]) if byte else token.replace(MARKER, " ").encode()
    else:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path!r}: cannot tell the bytes of its tokens (decoder: "
            f"{', '.join(sorted(kinds)) or 'none'}); models with different tokenizers need byte-level or "
            "SentencePiece tokenizers"
        )
    for index, added in tokenizer.added_tokens_decoder.items():
        found[index] = None if added.special else added.content.encode()
    for index in tokenizer.all_special_ids:
        found[index] = None
    return found


def matching_ids(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the student's and the teacher's ids, in pairs, of tokens that write the same bytes.

    Control tokens match where they are the same string. Where a vocabulary has two ids for the same
    bytes (SentencePiece's ``A`` and ``<0x41>``), the one that is no byte token counts, then the smaller.
    """
    ours, theirs = _by_content(student), _by_content(teacher)
    pairs = sorted((index, theirs[content]) for content, index in ours.items() if content in theirs)
    return [s for s, _ in pairs], [t for _, t in pairs]


def _by_content(tokenizer: PreTrainedTokenizerFast) -> dict[tuple[str, bytes], int]:
    contents = token_bytes(tokenizer)
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    plain_first = sorted(tokens, key=lambda index: (_BYTE_TOKEN.fullmatch(tokens[index]) is not None, index))
    found: dict[tuple[str, bytes], int] = {}
    for index in plain_first:
        content = contents[index]
        key = ("control", tokens[index].encode()) if content is None else ("text", content)
        found.setdefault(key, index)
    return found


def _decoder_parts(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    parts: list[dict[str, Any]] = state.get("decoders", [state])
    return parts


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, other bytes for U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _bytes_of_alphabet(token: str, alphabet: dict[str, int]) -> bytes:
    """An added token's characters may lie outside the alphabet; it is plain text."""
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()
