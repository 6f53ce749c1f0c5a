"""How a stage is optimised, and for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config, Fraction, PositiveFloat


class Budget(Config):
    """How long to train: the first limit that is reached ends the stage."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    """Tokens of the documents, prompts included."""

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if self.epochs is None and self.steps is None and self.tokens is None:
            raise ValueError("give at least one of epochs, steps, tokens")
        return self


class OptimisationConfig(Config):
    budget: Budget = Budget(epochs=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    """The cosine ends at this share of the peak."""
    warmup_fraction: Fraction = 0.05
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one optimizer step over all ranks, prompts included."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Padded tokens that one process holds at a time; the gradient does not depend on it."""
    layout: Literal["padded", "packed"] = "padded"
    """`padded`: rows of like length together. `packed`: several isolated documents per row."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute precision; master weights are always float32. `auto`: bfloat16 where the machine has it."""
    gradient_checkpointing: bool = False
    head_chunk: int = Field(default=512, ge=16)
    """Target tokens whose logits exist at one time."""
    compile_head: bool = True
    """Compile the pointwise part of the objective (needs a C++ compiler on CPU)."""
