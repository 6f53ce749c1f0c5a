"""Block-wise selection against sorting and summing whole rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.targets.blocks import ChunkLogits, block_sums, inverse_cdf, largest
from stillhouse.teachers.protocol import Projection


def chunk(seed: int, n: int, vocab: int, *, softcap: float | None = None, scale: float = 1.0) -> ChunkLogits:
    g = torch.Generator().manual_seed(seed)
    head = Projection(
        torch.randn(n, 6, generator=g, dtype=torch.float64),
        torch.randn(vocab + 5, 6, generator=g, dtype=torch.float64),
        torch.randn(vocab + 5, generator=g, dtype=torch.float64),
        scale,
        softcap,
    )
    return ChunkLogits.of(head, vocab)


def whole(logits: ChunkLogits) -> torch.Tensor:
    return logits.at(torch.arange(logits.vocab_size).expand(len(logits), -1))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    vocab=st.integers(1, 300),
    k=st.integers(1, 90),
    capped=st.booleans(),
    factor=st.sampled_from([1.0, 0.5, 2.0]),
)
def test_equals_whole_rows(seed: int, n: int, vocab: int, k: int, capped: bool, factor: float) -> None:
    logits = chunk(seed, n, vocab, softcap=2.0 if capped else None, scale=1.7 if capped else 1.0)
    z = whole(logits)
    sums = block_sums(logits, factor)
    torch.testing.assert_close(sums.log_total, (z * factor).logsumexp(-1))
    p = (z * factor).softmax(-1)
    torch.testing.assert_close(sums.entropy, -torch.special.xlogy(p, p).sum(-1), atol=1e-9, rtol=1e-9)
    ids = largest(logits, sums.maxima, k)
    torch.testing.assert_close(z.gather(1, ids), z.topk(min(k, vocab)).values)
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    u = torch.rand(n, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(1).values
    drawn = inverse_cdf(logits, sums, u)
    edges = torch.cat([torch.zeros(n, 1, dtype=p.dtype), p.cumsum(1)], dim=1)
    assert (edges.gather(1, drawn) <= u + 1e-9).all()
    assert (edges.gather(1, drawn + 1) >= u - 1e-9).all()


def test_head_transform_is_applied() -> None:
    logits = chunk(0, 3, 70, softcap=2.0, scale=1.7)
    plain = chunk(0, 3, 70)
    raw = plain.raw[:, :70]
    assert plain.bias is not None
    torch.testing.assert_close(whole(logits), 2.0 * torch.tanh(1.7 * (raw + plain.bias[:70]) / 2.0))


def test_masked_ids_are_never_drawn_and_count_nothing() -> None:
    logits = chunk(1, 4, 130)
    logits.raw[:, 10:100] = -torch.inf
    z = whole(logits)
    sums = block_sums(logits, 1.0)
    p = z.softmax(-1)
    torch.testing.assert_close(sums.entropy, -torch.special.xlogy(p, p).sum(-1))
    edge = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64).expand(4, 3)
    drawn = inverse_cdf(logits, sums, edge)
    assert (p.gather(1, drawn) > 0).all()
    assert (drawn[:, 2] == 129).all()
    ids = largest(logits, sums.maxima, 45)  # more than the 40 that are not masked
    assert set(range(10)) | set(range(100, 130)) <= set(ids[0].tolist())
    assert (ids < 130).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    head = Projection(torch.randn(5, 4, generator=g).to(dtype), torch.randn(200, 4, generator=g).to(dtype))
    logits = ChunkLogits.of(head, 200)
    sums = block_sums(logits, 1.0)
    assert sums.log_total.dtype == torch.float32
    torch.testing.assert_close(sums.log_total, logits.raw[:, :200].float().logsumexp(-1))


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_compiled_equals_eager(softcap: float | None) -> None:
    g = torch.Generator().manual_seed(2)
    head = Projection(
        torch.randn(70, 4, generator=g), torch.randn(200, 4, generator=g), torch.randn(200, generator=g), 1.3, softcap
    )
    logits = ChunkLogits.of(head, 200)
    for factor in (1.0, 0.5):
        eager, fast = (block_sums(logits, factor, compiled=compiled) for compiled in (False, True))
        for name in ("maxima", "masses", "log_total", "entropy"):
            torch.testing.assert_close(getattr(fast, name), getattr(eager, name), msg=name)
