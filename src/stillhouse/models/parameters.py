"""How many parameters a configuration has, without allocating them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def count_parameters(config: PreTrainedConfig) -> int:
    """Return the number of parameters of the causal model that ``config`` describes; tied ones count once.

    The model is built on the meta device, so a 70-billion-parameter count takes no memory.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(p.numel() for p in model.parameters())
