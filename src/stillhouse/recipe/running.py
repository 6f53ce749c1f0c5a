"""Evaluation, checkpoints, processes and output."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.recipe.base import Config
from stillhouse.recipe.data import SourceConfig


class GenerationConfig(Config):
    rows: int = Field(default=32, ge=0)
    """Held-out rows with a gold answer that are generated and scored by exact match; 0 turns it off."""
    max_new_tokens: int = Field(default=128, ge=1)
    samples: int = Field(default=4, ge=0)
    """Generations shown side by side in the report."""


RunMetricName = Literal["exact_match", "multiple_choice", "rouge_l", "chrf", "ifeval", "token_ece"]
MetricName = RunMetricName | Literal["code"]
"""A run never executes what a model wrote, so `code` is for `stillhouse evaluate` alone."""


class EvaluationConfig(Config):
    every_steps: int | None = Field(default=None, ge=1)
    """None: about ten times in a run."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better validation NLL, and keep the best weights."""
    test: tuple[SourceConfig, ...] = ()
    """Rows for the final numbers; empty means the validation rows."""
    test_limit_per_domain: int | None = Field(default=None, ge=1)
    generation: GenerationConfig = GenerationConfig()
    metrics: Literal["auto"] | tuple[RunMetricName, ...] = "auto"
    """Scores besides NLL, of exact_match, multiple_choice, rouge_l, chrf, ifeval and token_ece: `auto` is every one
    that the held-out rows allow, `[]` none."""
    multiple_choice_rows: int = Field(default=200, ge=0)
    """Held-out rows with `choices` that are scored by likelihood; 0 turns it off."""


class CheckpointConfig(Config):
    every_steps: int | None = Field(default=None, ge=1)
    """None: with each evaluation."""
    keep: int = Field(default=2, ge=1)
    """The newest so many stay; the best one stays too when early stopping is on."""


class ParallelConfig(Config):
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: `ddp` keeps whole weights per rank, `fsdp` shards them (FSDP2)."""
    cpu_offload: bool = False
    """FSDP2 keeps parameters and optimizer state in CPU memory."""


class OutputConfig(Config):
    dir: str
    license: str | None = None
    """Licence written on the model card; None copies the source model's where it is known."""
    save_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the saved weights; `auto` follows the compute precision."""
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
