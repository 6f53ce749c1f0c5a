"""Tokens as bytes: what a tokenizer writes is the sum of its tokens, whatever the text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import ModelError
from stillhouse.models.token_bytes import matching_ids, token_bytes

SENTENCE_PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "A"]


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerFast:
    """Like Llama 2's: markers for spaces, bytes for what is not in the vocabulary."""
    vocabulary = {piece: index for index, piece in enumerate(SENTENCE_PIECES)}
    bpe = models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def written(tokenizer: PreTrainedTokenizerFast, text: str) -> bytes:
    contents = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return b"".join(contents[i] or b"?" for i in ids)


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=20).filter(lambda t: "<" not in t))
def test_a_byte_level_tokenizer_writes_every_text(tiny_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert written(tiny_tokenizer, text) == text.encode()


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<▁"), min_size=1, max_size=20))
def test_a_sentencepiece_tokenizer_writes_a_space_and_the_text(
    sentencepiece: PreTrainedTokenizerFast, text: str
) -> None:
    assert written(sentencepiece, text).removeprefix(b" ") == text.encode().removeprefix(b" ")


def test_control_tokens_write_nothing(
    tiny_tokenizer: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    ours = token_bytes(tiny_tokenizer)
    assert [ours[tiny_tokenizer.convert_tokens_to_ids(t)] for t in ("<|im_start|>", "<|im_end|>")] == [None, None]
    assert ours[tiny_tokenizer.convert_tokens_to_ids("Ġ")] == b" "
    theirs = token_bytes(sentencepiece)
    assert theirs[:3] == [None, None, None]
    assert theirs[3 + 0xE9] == b"\xe9"
    assert theirs[SENTENCE_PIECES.index("▁a")] == b" a"


def test_an_added_token_that_is_no_control_token_is_text(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["stillhouse é"])
    assert token_bytes(tokenizer)[-1] == "stillhouse é".encode()


def test_ids_match_by_bytes_and_control_tokens_by_name(
    tiny_tokenizer: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    ours, theirs = matching_ids(tiny_tokenizer, sentencepiece)
    left, right = token_bytes(tiny_tokenizer), token_bytes(sentencepiece)
    assert [left[i] for i in ours] == [right[i] for i in theirs]
    pair = dict(zip(ours, theirs, strict=True))
    # Both ``A`` and ``<0x41>`` write an A: the plain token is the one that counts.
    assert pair[tiny_tokenizer.convert_tokens_to_ids("A")] == SENTENCE_PIECES.index("A")
    assert pair[tiny_tokenizer.convert_tokens_to_ids("Ġ")] == SENTENCE_PIECES.index("▁")
    same, also = matching_ids(tiny_tokenizer, tiny_tokenizer)
    assert same == also
    assert set(same) >= {tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_tokenizer_that_does_not_know_its_spaces_is_refused() -> None:
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    wordpiece.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="decoder: WordPiece"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=wordpiece, unk_token="[UNK]"))
    with pytest.raises(ModelError, match="decoder: none"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))))
