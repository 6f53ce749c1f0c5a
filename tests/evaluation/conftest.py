"""Rows in three domains, and tiny Llamas whose head has padding rows."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.chat import ChatFormat
from stillhouse.data.prepare import Prepared, prepare
from stillhouse.data.rows import Message, Row
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.recipe import DataConfig, SourceConfig


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return tiny_tokenizer


@pytest.fixture(scope="session")
def chat_format(tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat(tokenizer)


def chat_row(domain: str, number: int, prompt: str, gold: str, answer: str | None = None) -> Row:
    messages = (Message("user", prompt), Message("assistant", gold))
    return Row(messages, None, domain, answer, f"{domain}-{number}", f"rows.jsonl:{number}")


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    math = [chat_row("math", i, f"{i} + {i} =", f"It is {2 * i}.", str(2 * i)) for i in range(6)]
    choice = [chat_row("choice", i, f"Choose {'AB'[i % 2]} {i}", "AB"[i % 2], "AB"[i % 2]) for i in range(3)]
    talk = [chat_row("talk", i, f"Say {i} 🦊", f"größer 🦊 漢字 {i}") for i in range(4)]
    return math + choice + talk


@pytest.fixture(scope="session")
def prepared(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    config = DataConfig(train=(SourceConfig(path="unused"),), max_seq_len=64)
    return prepare(rows, tokenizer, config, tokenizer_hash=tokenizer_hash(tokenizer))


@pytest.fixture(scope="session")
def vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
    return vocabulary_size(tokenizer)


def tiny_llama(vocab_size: int, seed: int) -> LlamaForCausalLM:
    """Random float32 weights; four rows of the head are padding."""
    config = LlamaConfig(
        vocab_size=vocab_size + 4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.2,
        attention_dropout=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def model(vocab_size: int) -> LlamaForCausalLM:
    return tiny_llama(vocab_size, 0)


@pytest.fixture(scope="session")
def other_model(vocab_size: int) -> LlamaForCausalLM:
    return tiny_llama(vocab_size, 1).eval()
