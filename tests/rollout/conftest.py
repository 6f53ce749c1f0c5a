"""A tiny random Llama whose answers depend on the prompt."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PADDING_ROWS = 3


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return tiny_tokenizer


@pytest.fixture(scope="session")
def num_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    return len(tokenizer)


@pytest.fixture(scope="session")
def model(num_ids: int) -> LlamaForCausalLM:
    """Float32 weights, large enough that the next token depends on the prompt; the head has padding rows."""
    config = LlamaConfig(
        vocab_size=num_ids + PADDING_ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)
