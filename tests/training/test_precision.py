"""Master weights: float32 sums whatever the model computes in."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from stillhouse.training.precision import MasterWeights, has_bfloat16, resolve_dtype


def tied() -> nn.Module:
    """An embedding and a head that are one parameter."""
    module = nn.Module()
    module.embedding = nn.Embedding(5, 4)
    module.head = nn.Linear(4, 5, bias=False)
    module.head.weight = module.embedding.weight
    with torch.no_grad():
        module.embedding.weight.copy_(torch.linspace(-1, 1, 20).view(5, 4) / 3)
    return module


def test_masters_keep_what_bfloat16_rounds_away() -> None:
    module = tied()
    exact = module.embedding.weight.detach().clone()
    weights = MasterWeights(module, torch.bfloat16)
    assert module.embedding.weight.dtype == torch.bfloat16
    assert list(weights.named()) == ["embedding.weight"]
    assert torch.equal(weights.named()["embedding.weight"], exact)
    assert module.head.weight is module.embedding.weight


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    module = tied()
    weights = MasterWeights(module, torch.bfloat16)
    # 1 and 2^-9: their sum is not representable in bfloat16, which has 8 significant bits.
    for factor in (1.0, 2.0**-9):
        (module.embedding(torch.tensor([0])).sum() * factor).backward()
    gradient = weights.gradient_of(module.embedding.weight)
    assert gradient is not None
    assert gradient[0].tolist() == [1 + 2.0**-9] * 4
    assert module.embedding.weight.grad is None
    weights.zero_gradients()
    assert not gradient.any()


def test_a_step_moves_the_master_and_refreshes_the_copy() -> None:
    module = tied()
    weights = MasterWeights(module, torch.bfloat16)
    master = weights.named()["embedding.weight"]
    with torch.no_grad():
        master.add_(1e-4)
    weights.refresh()
    assert torch.equal(module.embedding.weight, master.to(torch.bfloat16))


def test_frozen_parameters_have_no_master() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    weights = MasterWeights(module, torch.bfloat16)
    assert list(weights.named()) == ["1.weight", "1.bias"]
    assert weights.gradient_of(module[0].weight) is None
    assert module[0].weight.dtype == torch.bfloat16


def test_float32_parameters_are_their_own_masters() -> None:
    module = tied()
    weights = MasterWeights(module, torch.float32)
    assert weights.named()["embedding.weight"] is module.embedding.weight


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_named_precision_is_taken(name: str, dtype: torch.dtype) -> None:
    assert resolve_dtype(name, torch.device("cpu")) is dtype


def test_auto_follows_the_machine() -> None:
    wanted = torch.bfloat16 if has_bfloat16(torch.device("cpu")) else torch.float32
    assert resolve_dtype("auto", torch.device("cpu")) is wanted


def test_nothing_is_kept_when_training_is_over() -> None:
    module = tied()
    weights = MasterWeights(module, torch.bfloat16)
    module.embedding(torch.tensor([0])).sum().backward()
    assert weights.gradient_of(module.embedding.weight) is not None
    kept = [weakref.ref(weights), weakref.ref(weights.named()["embedding.weight"]), weakref.ref(module)]
    del weights, module
    gc.collect()
    assert [reference() for reference in kept] == [None, None, None]
