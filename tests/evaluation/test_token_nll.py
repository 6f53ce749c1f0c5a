"""Token NLL against worked numbers and against float64 cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillhouse.evaluation.token_nll import token_nll
from stillhouse.teachers.protocol import Projection


def from_logits(logits: list[list[float]]) -> Projection:
    """A projection whose logits are given: an identity head over hidden states equal to the logits."""
    hidden = torch.tensor(logits, dtype=torch.float32)
    return Projection(hidden, torch.eye(hidden.shape[1]))


def reference(projection: Projection, labels: Tensor, vocab_size: int) -> Tensor:
    """The same number from the whole float64 logit matrix."""
    logits = projection.hidden.double() @ projection.weight.double().T
    if projection.bias is not None:
        logits = logits + projection.bias.double()
    logits = logits * projection.scale
    if projection.softcap is not None:
        logits = projection.softcap * torch.tanh(logits / projection.softcap)
    log_probs = logits[:, :vocab_size].log_softmax(-1)
    return -log_probs[torch.arange(len(labels)), labels]


def test_worked_numbers() -> None:
    # z = [1,1,0,0], y = 0: log(2e + 2) - 1 = 1.006409
    # z = [3,0,0,1], y = 3: log(e^3 + 2 + e) - 1 = 2.210997; their mean is 1.608703
    nll = token_nll(from_logits([[1, 1, 0, 0], [3, 0, 0, 1]]), torch.tensor([0, 3]), vocab_size=None, chunk=8)
    assert nll[0].item() == pytest.approx(1.006409, abs=1e-5)
    assert nll.mean().item() == pytest.approx(1.608703, abs=1e-5)
    assert nll.mean().exp().item() == pytest.approx(4.996328, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize(("scale", "softcap", "with_bias"), [(1.0, None, False), (0.25, None, True), (2.0, 5.0, True)])
def test_any_chunk_equals_float64(chunk: int, scale: float, softcap: float | None, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(11, generator=generator) if with_bias else None
    projection = Projection(
        torch.randn(7, 5, generator=generator), torch.randn(11, 5, generator=generator), bias, scale, softcap
    )
    labels = torch.randint(0, 9, (7,), generator=generator)
    nll = token_nll(projection, labels, vocab_size=9, chunk=chunk)
    torch.testing.assert_close(nll.double(), reference(projection, labels, 9), atol=1e-5, rtol=1e-5)


def test_padding_rows_get_no_probability() -> None:
    # Two real ids with equal logits and one huge padding row: ln 2, as if the padding were not there.
    nll = token_nll(from_logits([[0.0, 0.0, 50.0]]), torch.tensor([1]), vocab_size=2, chunk=4)
    assert nll.item() == pytest.approx(0.693147, abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    nll = token_nll(from_logits([[1e4, -1e4]]), torch.tensor([1]), vocab_size=None, chunk=4)
    assert nll.item() == pytest.approx(2e4)


def test_no_targets() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert token_nll(from_logits([[1.0, 2.0]]), nothing, vocab_size=None, chunk=4).shape == (0,)


def test_too_large_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=3 exceeds the head's 2 rows"):
        token_nll(from_logits([[1.0, 2.0]]), torch.tensor([0]), vocab_size=3, chunk=4)
