"""Tiny random models of the families that the head and the pruning must know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from stillhouse.data.document import Document, DocumentSet, document_uid

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 4}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama_bias": lambda: LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GROUPED),
    "smollm3": lambda: SmolLM3Config(**SIZES, num_key_value_heads=2, no_rope_layers=[1, 0, 1, 0]),
    "gemma2": lambda: Gemma2Config(**GROUPED, final_logit_softcapping=0.05, sliding_window=4),
    "gemma3": lambda: Gemma3TextConfig(**GROUPED, final_logit_softcapping=0.1, sliding_window=4),
    "cohere": lambda: CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.0625),
    "granite": lambda: GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=8.0, embedding_multiplier=3.0),
    "phi": lambda: PhiConfig(**SIZES, num_key_value_heads=2),
    "gpt2": lambda: GPT2Config(
        vocab_size=61, n_embd=16, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "opt": lambda: OPTConfig(**(SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16})),
}


def random_model(config: Any, *, seed: int = 0) -> PreTrainedModel:
    """A float32 model whose every parameter is random, biases and norms too."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.3 * noise)
    return model


def family_model(name: str) -> PreTrainedModel:
    """A random model of one of ``FAMILIES``."""
    return random_model(FAMILIES[name]())


def random_documents(vocab_size: int, *, count: int = 6, seed: int = 0, hash_text: str = "test") -> DocumentSet:
    """Documents of 5 to 12 random ids in two domains; all but the first two tokens are targets."""
    rng = np.random.default_rng(seed)
    documents = []
    for index in range(count):
        ids = rng.integers(3, vocab_size, rng.integers(5, 13)).astype(np.int32)
        mask = np.arange(len(ids)) >= 2
        documents.append(Document(ids, mask, index % 2, document_uid(ids, mask, hash_text)))
    return DocumentSet.build(documents, range(count), ("a", "b"), hash_text)
