"""What codecs keep, against the dense distribution; and that records hold it bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.errors import RecipeError
from stillhouse.targets.blocks import ChunkLogits
from stillhouse.targets.codec import Codec, Sampled, Selection, TopK, TopKGhost, codec_from
from stillhouse.targets.sparse import SparseTargets
from stillhouse.teachers.protocol import Projection

CODECS: list[Codec] = [
    TopK(k=4),
    TopKGhost(k=4),
    TopKGhost(k=4, statistics=False, value_bits=13),
    TopKGhost(k=4, entropy=False),
    TopK(k=500, value_bits=16),
    TopKGhost(k=500),
    Sampled(draws=20),
    Sampled(draws=20, method="independent"),
    Sampled(draws=7, tau=0.6, statistics=False),
]


def logits_of(z: Tensor) -> ChunkLogits:
    return ChunkLogits.of(Projection(z, torch.eye(z.shape[1], dtype=z.dtype)), z.shape[1])


def select(codec: Codec, z: Tensor, labels: Tensor, *, temperature: float = 1.0, seed: int = 0) -> Selection:
    width = codec.uniforms_per_target
    g = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(z), width, generator=g, dtype=torch.float64) if width else None
    return codec.select(logits_of(z), labels, temperature, uniforms)


def through(codec: Codec, z: Tensor, labels: Tensor, *, temperature: float = 1.0, seed: int = 0) -> SparseTargets:
    """Encode as one document, and decode."""
    targets = np.array([len(z)], np.int64)
    chosen = select(codec, z, labels, temperature=temperature, seed=seed)
    buffer, offsets = codec.pack(chosen, targets, z.shape[1])
    return codec.unpack(buffer, offsets[:-1], targets, vocab_size=z.shape[1], temperature=temperature)


def dense(targets: SparseTargets) -> Tensor:
    return torch.zeros(len(targets), targets.vocab_size).scatter_add_(1, targets.ids.clamp_min(0), targets.weight)


def teacher_logits(seed: int, n: int, vocab: int) -> Tensor:
    return 2.5 * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(
    codec=st.sampled_from(CODECS),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    vocab=st.integers(2, 300),
    seed=st.integers(0, 10**6),
)
def test_records_of_any_documents_come_back(codec: Codec, counts: list[int], vocab: int, seed: int) -> None:
    """Packing many documents and reading one of them gives what packing that one alone gives."""
    z, n = teacher_logits(seed, sum(counts), vocab), sum(counts)
    labels = torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed))
    if n == 0:
        return
    chosen = select(codec, z, labels, seed=seed)
    sizes = np.array(counts, np.int64)
    buffer, offsets = codec.pack(chosen, sizes, vocab)
    whole = codec.unpack(buffer, offsets[:-1], sizes, vocab_size=vocab, temperature=1.0)
    whole.check()
    assert torch.equal(whole.top1, z.argmax(1))
    assert torch.equal(whole.valid.sum(1), torch.from_numpy(chosen.slots))
    assert whole.ids[whole.valid].tolist() == chosen.ids.tolist()
    row = 0
    for document, count in enumerate(counts):
        one = codec.unpack(
            buffer, offsets[document : document + 1], sizes[document : document + 1], vocab_size=vocab, temperature=1.0
        )
        assert torch.equal(dense(one), dense(whole)[row : row + count])
        kept = [codec.num_statistics > 0, codec.num_statistics > 1]
        pairs = [(one.teacher_nll, whole.teacher_nll), (one.teacher_entropy, whole.teacher_entropy)]
        for (mine, all_rows), is_kept in zip(pairs, kept, strict=True):
            assert (mine is not None) == (all_rows is not None) == is_kept
            assert mine is None or all_rows is None or torch.equal(mine, all_rows[row : row + count])
        row += count


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_weights(temperature: float) -> None:
    z, labels = teacher_logits(0, 30, 150), torch.arange(30)
    p = (z / temperature).softmax(-1)
    kept, ids = p.topk(6, dim=1)
    ghost = through(TopKGhost(k=6, value_bits=16), z, labels, temperature=temperature)
    renormalised = through(TopK(k=6, value_bits=16), z, labels, temperature=temperature)
    assert torch.equal(ghost.ids, ids)
    # 65,535 steps: half a step is at most 16 * 2 * .5 / 65535 = 2.4e-4 nats.
    torch.testing.assert_close(ghost.weight.double(), kept, rtol=3e-4, atol=0)
    torch.testing.assert_close(renormalised.weight.double(), kept / kept.sum(1, keepdim=True), rtol=5e-4, atol=0)
    torch.testing.assert_close(1 - ghost.weight.sum(1).double(), 1 - kept.sum(1), rtol=2e-3, atol=1e-6)
    assert (ghost.tail, ghost.kind, ghost.temperature) == ("ghost", "top_k", temperature)


@pytest.mark.parametrize("codec", [TopK(k=999, value_bits=16), TopKGhost(k=60, value_bits=16)])
def test_every_id_kept_is_the_dense_distribution(codec: Codec) -> None:
    z = teacher_logits(1, 9, 60)
    found = through(codec, z, torch.arange(9))
    torch.testing.assert_close(dense(found).double(), z.softmax(-1), rtol=6e-4, atol=2e-7)
    torch.testing.assert_close(found.weight.sum(1), torch.ones(9))


def test_value_bits_bound_the_error() -> None:
    """Steps of sqrt(-l): half a step changes l by at most sqrt(16 |l|) / L."""
    z = teacher_logits(2, 200, 100)
    log_p = z.log_softmax(-1).topk(5).values
    for bits in (6, 8, 10):
        steps = 2**bits - 1
        chosen = select(TopKGhost(k=5, value_bits=bits, statistics=False), z, torch.zeros(200, dtype=torch.int64))
        kept = -16.0 * (torch.from_numpy(chosen.codes).view(200, 5) / steps) ** 2
        bound = (16.0 * -log_p).sqrt() / steps + 16.0 / (4 * steps**2)
        assert ((kept - log_p).abs() <= bound + 1e-9).all()


def test_statistics_are_at_temperature_one() -> None:
    z, labels = teacher_logits(3, 12, 80), torch.arange(12)
    p = z.softmax(-1)
    found = through(TopK(k=2), z, labels, temperature=3.0)
    assert found.teacher_nll is not None
    assert found.teacher_entropy is not None
    torch.testing.assert_close(found.teacher_nll.double(), -p.log().gather(1, labels[:, None])[:, 0], rtol=1e-3, atol=0)
    torch.testing.assert_close(found.teacher_entropy.double(), -(p * p.log()).sum(1), rtol=1e-3, atol=0)


def test_sampled_weights_are_counts() -> None:
    z = teacher_logits(4, 50, 90)
    found = through(Sampled(draws=16), z, torch.zeros(50, dtype=torch.int64))
    counts = found.weight * 16
    torch.testing.assert_close(counts, counts.round())
    assert torch.equal(counts.sum(1), torch.full((50,), 16.0))
    # Systematic draws: an interval of length N p holds floor or ceil of it points of a grid of step 1.
    expected = 16 * z.softmax(-1)
    assert ((16 * dense(found).double() - expected).abs() < 1).all()


@pytest.mark.parametrize(
    "codec",
    [
        Sampled(draws=5),
        Sampled(draws=5, method="independent"),
        Sampled(draws=5, tau=0.5, method="independent"),
        Sampled(draws=5, tau=2.0),
    ],
)
def test_sampled_is_unbiased(codec: Sampled) -> None:
    """The mean of 40,000 estimates of one distribution is within 4.5 standard errors of it, at every id."""
    z = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0, 0.5]], dtype=torch.float64)
    p = z.softmax(-1)[0]
    estimates = dense(through(codec, z.expand(40_000, -1), torch.zeros(40_000, dtype=torch.int64), seed=1)).double()
    error = estimates.std(0) / math.sqrt(40_000)
    assert ((estimates.mean(0) - p).abs() <= 4.5 * error + 1e-4 * p).all()  # float16 weights where tau != 1
    if codec.tau == 1 and codec.method == "independent":
        torch.testing.assert_close(estimates.var(0), p * (1 - p) / 5, rtol=0.06, atol=0)
    if codec.tau == 0.5:  # Var = (p^2 / s - p^2) / N, methods.md section 4
        s = (z[0] * 0.5).softmax(-1)
        torch.testing.assert_close(estimates.var(0), (p**2 / s - p**2) / 5, rtol=0.06, atol=0)
    if codec.method == "systematic" and codec.tau == 1:
        # A grid of step 1/N meets an interval of length p floor(Np) or one more times.
        part = 5 * p - (5 * p).floor()
        torch.testing.assert_close(estimates.var(0), part * (1 - part) / 25, rtol=0.15, atol=1e-6)


def test_unlikely_top_id_is_listed_without_weight() -> None:
    """With 2 draws from 50 nearly equal ids the most probable one is rarely drawn, and still known."""
    z = torch.zeros(40, 50, dtype=torch.float64)
    z[:, 17] = 0.01
    found = through(Sampled(draws=2), z, torch.zeros(40, dtype=torch.int64))
    assert (found.top1 == 17).all()
    assert (found.weight[:, 0] == 0).any()
    found.check()


@pytest.mark.parametrize("codec", CODECS)
def test_bits_are_counted(codec: Codec) -> None:
    z = teacher_logits(5, 64, 1000)
    chosen = select(codec, z, torch.zeros(64, dtype=torch.int64))
    buffer, _ = codec.pack(chosen, np.array([64]), 1000)
    if not isinstance(codec, Sampled):
        assert len(buffer) == math.ceil(64 * codec.typical_bits(1000) / 8)
    statistics = 32 * codec.statistics
    if codec == Sampled(draws=20):  # 5 bits how many, 10 bits an id, 1 a flag, 5 a count that is not 1
        bits = 64 * (5 + statistics) + 11 * len(chosen.ids) + 5 * int((chosen.codes != 1).sum())
        assert len(buffer) == math.ceil(bits / 8)


@pytest.mark.parametrize("codec", CODECS)
def test_description_round_trip(codec: Codec) -> None:
    assert codec_from(codec.describe()) == codec


def test_bad_descriptions_are_named() -> None:
    with pytest.raises(RecipeError, match=r"teacher\.cache\.codec\.type=top_k_ghost: must be one of topk, topk_ghost"):
        codec_from({"type": "top_k_ghost"})
    with pytest.raises(RecipeError, match=r"teacher\.cache\.codec\.draws: the codec topk has no such field"):
        codec_from({"type": "topk", "draws": 3})
    with pytest.raises(RecipeError, match="value_bits=3"):
        TopK(value_bits=3)
    with pytest.raises(RecipeError, match="draws=0"):
        Sampled(draws=0)
