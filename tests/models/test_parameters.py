"""Parameter counts of methods.md section 11, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from stillhouse.models.parameters import count_parameters

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # 2*V*d + L*(2*d*d + 2*d*1024 + 3*d*f + 2*d) + d
        (LLAMA_8B, 8_030_261_248),
        (LLAMA_8B | {"hidden_size": 3072, "intermediate_size": 9216}, 4_512_746_496),
        (LLAMA_8B | {"num_hidden_layers": 16}, 4_540_469_248),
        (LLAMA_1B, 1_235_814_400),
        # 1,235,814,400 - (128,256 - 32,000) * 2048
        (LLAMA_1B | {"vocab_size": 32_000}, 1_038_682_112),
        # 64*16 + 4*(2*16*16 + 2*16*8 + 3*16*32 + 2*16) + 16
        (TINY, 10_384),
    ],
)
def test_counts(sizes: dict[str, Any], expected: int) -> None:
    assert count_parameters(LlamaConfig(**sizes)) == expected
