"""Rough memory, disk and time of a run, before anything is spent.

The figures are for planning: memory counts what must be held and a usual activation size, time
counts floating-point operations against a matrix product measured here and now.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stillhouse.recipe import Recipe, StageConfig

_ACTIVATION_VALUES = 34
"""Values kept per token, layer and hidden unit for the backward pass of a Llama layer, about."""
_UTILISATION = 0.5
"""Share of the measured matrix-product speed that a whole step reaches, about."""


@dataclass(frozen=True)
class ModelSize:
    """What an estimate needs of a model."""

    parameters: int
    layers: int
    hidden_size: int
    vocabulary: int


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds, for one process."""

    memory_bytes: int
    disk_bytes: int
    seconds: float
    training_tokens: int
    steps: int


def estimate(
    recipe: Recipe,
    stage: StageConfig,
    student: ModelSize,
    teacher: ModelSize | None,
    *,
    tokens: int,
    steps: int,
    dtype: torch.dtype,
    flops: float,
) -> Estimate:
    """Estimate one process's share of a stage on ``tokens`` training tokens in all.

    ``flops``: floating-point operations per second of a matrix product in ``dtype``.
    """
    optimisation = stage.optimisation
    size = dtype.itemsize
    trained = student.parameters if recipe.student.lora is None else _lora_parameters(recipe, student)
    copy = student.parameters * size if dtype != torch.float32 else 0
    frozen = 0 if recipe.student.lora is None else student.parameters * size
    weights = trained * 16 + copy + frozen
    weights += teacher.parameters * size if teacher else 0
    layers = 1 if optimisation.gradient_checkpointing else student.layers
    activations = optimisation.micro_batch_tokens * layers * student.hidden_size * _ACTIVATION_VALUES * size
    logits = optimisation.head_chunk * student.vocabulary * (3 * 4 if teacher else 2 * 4)
    checkpoint = trained * 12
    disk = checkpoint * (recipe.checkpoints.keep + 1) + student.parameters * (size + 4)
    operations = tokens * (6.0 * student.parameters + (2.0 * teacher.parameters if teacher else 0.0))
    return Estimate(weights + activations + logits, disk, operations / (flops * _UTILISATION), tokens, steps)


def in_sequence(stages: Sequence[Estimate]) -> Estimate:
    """The estimate of several stages one after the other: the most memory, the sum of the rest."""
    return Estimate(
        memory_bytes=max(e.memory_bytes for e in stages),
        disk_bytes=sum(e.disk_bytes for e in stages),
        seconds=sum(e.seconds for e in stages),
        training_tokens=sum(e.training_tokens for e in stages),
        steps=sum(e.steps for e in stages),
    )


def measure_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of a matrix product of a usual shape (about 0.2 s)."""
    size = 512 if device.type == "cpu" else 4096
    a = torch.ones(size, 4 * size, dtype=dtype, device=device)
    b = torch.ones(4 * size, size, dtype=dtype, device=device)
    a @ b
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.2:
        a @ b
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return count * 2.0 * size * 4 * size * size / (time.perf_counter() - started)


def _lora_parameters(recipe: Recipe, student: ModelSize) -> int:
    assert recipe.student.lora is not None
    # Seven linear layers per block, of about (hidden, 2 * hidden) on average.
    return student.layers * 7 * 3 * student.hidden_size * recipe.student.lora.rank
