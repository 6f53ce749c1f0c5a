from __future__ import annotations

import math

import pytest

from stillhouse.study.adviser.evidence import Evidence
from stillhouse.study.adviser.predict import predict_doubling, predict_gain, predict_loss
from stillhouse.study.analysis.intervals import t_interval


def sft(size: float) -> float:
    return 1.80 + 8 * size**-0.35


def kd(size: float) -> float:
    return 1.84 + 3 * size**-0.30


def evidence(sizes: tuple[float, ...], full: float, *, seeds: int = 3, spread: float = 0.001) -> Evidence:
    """The gain of seed s is shifted by s * ``spread``; both methods share a larger shift."""
    return Evidence(
        "sft",
        "kd",
        full,
        {d: {s: sft(d) + 0.1 * s + spread * s for s in range(seeds)} for d in sizes},
        {d: {s: kd(d) + 0.1 * s for s in range(seeds)} for d in sizes},
        teacher_nll=1.7,
    )


def test_five_sizes_are_carried_on_by_their_curves() -> None:
    found = predict_gain(evidence((1e3, 3e3, 1e4, 3e4, 1e5), 5e5))
    assert found is not None
    assert set(found.ways) == {"stays", "line", "fits"}
    # Seeds shift the gain by 0, .001, .002: the mean of the fits is the true curve plus .001.
    assert found.mean == pytest.approx(sft(5e5) - kd(5e5) + 0.001, abs=1e-4)
    assert (found.factor, found.num_seeds, found.too_far) == (pytest.approx(5.0), 3, False)


def test_two_sizes_by_hand() -> None:
    # Gains .3 at 100 and .2 at 1,000; at 10,000 they stay .2 or fall on to .1.
    found = predict_gain(
        Evidence(
            "sft", "kd", 1e4, {100: {0: 2.3, 1: 2.3}, 1000: {0: 2.2, 1: 2.2}}, {100: {0: 2, 1: 2}, 1000: {0: 2, 1: 2}}
        )
    )
    assert found is not None
    assert {name: way.mean for name, way in found.ways.items()} == pytest.approx({"stays": 0.2, "line": 0.1})
    assert (found.mean, found.low, found.high) == pytest.approx((0.15, 0.1, 0.2))
    assert found.factor == 10.0
    assert not found.too_far


def test_the_interval_covers_every_way() -> None:
    found = predict_gain(evidence((1e3, 3e3, 1e4), 5e4, spread=0.01))
    assert found is not None
    for way in found.ways.values():
        assert way.low is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low <= way.low <= way.mean <= found.high
    # The spread comes from the seeds: 0, .01 and .02 around the same curve.
    spread = t_interval([0.0, 0.01, 0.02])
    assert spread.high is not None
    assert found.ways["stays"].high == pytest.approx(found.ways["stays"].mean + spread.high - spread.mean)


def test_one_seed_has_no_interval_and_one_size_no_prediction() -> None:
    found = predict_gain(evidence((1e3, 1e4), 5e4, seeds=1))
    assert found is not None
    assert (found.low, found.high) == (None, None)
    assert predict_gain(evidence((1e3,), 5e4)) is None


def test_seeds_that_lack_a_size_are_left_out() -> None:
    known = evidence((1e3, 1e4), 5e4)
    losses = {d: dict(by_seed) for d, by_seed in known.method_losses.items()}
    del losses[1e3][2]
    found = predict_gain(Evidence("sft", "kd", 5e4, known.baseline_losses, losses))
    assert found is not None
    assert found.num_seeds == 2


def test_beyond_tenfold_is_too_far() -> None:
    found = predict_gain(evidence((1e3, 1e4), 1.5e5))
    assert found is not None
    assert found.too_far


def test_losses_and_the_worth_of_twice_the_data() -> None:
    known = evidence((1e3, 3e3, 1e4, 3e4, 1e5), 3e5)
    loss = predict_loss(known, known.baseline_losses)
    assert loss is not None
    assert loss.mean == pytest.approx(sft(3e5) + 0.101, abs=1e-4)
    assert loss.shifted(-1.7).mean == pytest.approx(loss.mean - 1.7)
    doubling = predict_doubling(known, known.method_losses)
    assert doubling is not None
    assert doubling.mean == pytest.approx(kd(3e5) - kd(6e5), abs=1e-6)
    slope = (kd(3e4) - kd(1e5)) / math.log(1e5 / 3e4)
    assert doubling.ways["same slope"].mean == pytest.approx(slope * math.log(2))
    assert doubling.ways["flattened slope"].mean == pytest.approx(slope * math.log(2) / math.sqrt(3))
