"""Hashes and shared vocabularies."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import ModelError
from stillhouse.models.tokenizers import shared_vocabulary_size, tokenizer_hash, vocabulary_size


def test_hash_ignores_template_padding_and_truncation(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    other = copy.deepcopy(tiny_tokenizer)
    other.chat_template = "{{ messages }}"
    other.backend_tokenizer.enable_padding(pad_id=1)
    other.backend_tokenizer.enable_truncation(7)
    assert tokenizer_hash(other) == tokenizer_hash(tiny_tokenizer)


def test_hash_sees_an_added_token(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<new>"])
    assert tokenizer_hash(other) != tokenizer_hash(tiny_tokenizer)


def test_shared_size_counts_real_ids(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tiny_tokenizer)
    assert shared_vocabulary_size(tiny_tokenizer, copy.deepcopy(tiny_tokenizer)) == size
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<new>"])
    assert vocabulary_size(other) == size + 1
    with pytest.raises(ModelError, match=rf"id {size} is '<new>' for the student and no token for the teacher"):
        shared_vocabulary_size(other, tiny_tokenizer)
