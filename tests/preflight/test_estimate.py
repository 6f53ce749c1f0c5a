"""Estimates, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.preflight.estimate import ModelSize, estimate, measure_flops
from stillhouse.recipe import Recipe

STUDENT = ModelSize(parameters=1_000_000, layers=2, hidden_size=10, vocabulary=100)
TEACHER = ModelSize(parameters=3_000_000, layers=4, hidden_size=20, vocabulary=100)


def recipe(data: dict[str, Any], **optimisation: Any) -> Recipe:
    settings = {"micro_batch_tokens": 1000, "head_chunk": 16, **optimisation}
    return Recipe.model_validate({**data, "stages": [{"objective": {"type": "kd"}, "optimisation": settings}]})


def test_memory_counts_masters_gradients_moments_copies_and_the_head_chunk(recipe_data: dict[str, Any]) -> None:
    guess = estimate(
        made := recipe(recipe_data),
        made.stages[0],
        STUDENT,
        TEACHER,
        tokens=1000,
        steps=1,
        dtype=torch.bfloat16,
        flops=1e9,
    )
    weights = 1_000_000 * (16 + 2) + 3_000_000 * 2
    activations = 1000 * 2 * 10 * 34 * 2
    logits = 16 * 100 * 3 * 4
    assert guess.memory_bytes == weights + activations + logits
    # Two kept checkpoints and one being written at 12 bytes, the model, the initial student in float32.
    assert guess.disk_bytes == 1_000_000 * 12 * 3 + 1_000_000 * (2 + 4)


def test_time_is_six_operations_a_parameter_and_two_for_the_teacher(recipe_data: dict[str, Any]) -> None:
    guess = estimate(
        made := recipe(recipe_data),
        made.stages[0],
        STUDENT,
        TEACHER,
        tokens=1000,
        steps=1,
        dtype=torch.float32,
        flops=2e9,
    )
    assert guess.seconds == pytest.approx(1000 * (6e6 + 2 * 3e6) / 1e9)


def test_checkpointing_and_sft_take_less(recipe_data: dict[str, Any]) -> None:
    def memory(teacher: ModelSize | None, **optimisation: Any) -> int:
        made = recipe(recipe_data, **optimisation)
        return estimate(
            made, made.stages[0], STUDENT, teacher, tokens=1, steps=1, dtype=torch.float32, flops=1e9
        ).memory_bytes

    assert memory(TEACHER, gradient_checkpointing=True) < memory(TEACHER)
    assert memory(None) < memory(TEACHER)


def test_the_measured_speed_is_plausible() -> None:
    assert 1e8 < measure_flops(torch.float32, torch.device("cpu")) < 1e15
