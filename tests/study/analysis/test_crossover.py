from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_rows import SIZES, kd, sft

from stillhouse.study.analysis.crossover import Crossover, find_crossover

Curve = Callable[[float], float]


def grid(curve: Curve, sizes: Sequence[float] = SIZES, seeds: int = 1) -> dict[float, dict[int, float]]:
    return {d: {seed: curve(d) for seed in range(seeds)} for d in sizes}


def cross(base: Curve, method: Curve, sizes: Sequence[float] = SIZES, seeds: int = 1) -> Crossover:
    found = find_crossover(grid(base, sizes, seeds), grid(method, sizes, seeds), np.random.default_rng(0), draws=50)
    assert found is not None
    return found


def test_worked_differences() -> None:
    # 8 D^-.35 - 3 D^-.30 - .04 at each size
    assert [sft(d) - kd(d) for d in SIZES] == pytest.approx(
        [0.089199, 0.040679, 0.007394, -0.011382, -0.023491], abs=1e-6
    )


def test_worked_crossover_of_fits() -> None:
    found = cross(sft, kd)
    assert found.size == pytest.approx(145_418, abs=1)
    assert (found.status, found.how, found.extrapolated) == ("crosses", "fit", False)
    assert found.searched == pytest.approx((1e4 / 3, 9.39e6))


def test_worked_interpolation_with_fewer_sizes() -> None:
    # ln D* = ln 1e5 + ln 3 * .007394 / (.007394 + .011382)
    found = cross(sft, kd, SIZES[1:])
    assert found.size == pytest.approx(154_132, abs=1)
    assert (found.how, found.baseline_fit) == ("interpolation", None)


def test_one_seed_has_no_spread() -> None:
    found = cross(sft, kd)
    assert (found.quantiles, found.fraction_without_root, found.interval_kind) == (None, None, "none")


def test_a_crossing_beyond_the_sizes_is_flagged() -> None:
    sizes = [3e3, 6e3, 1.2e4, 2.4e4, 4.8e4]
    found = cross(sft, kd, sizes)
    assert found.size == pytest.approx(145_418, rel=1e-3)
    assert found.extrapolated


@pytest.mark.parametrize(
    ("base", "method", "status"),
    [
        (lambda d: sft(d) + 0.5, kd, "method_ahead"),
        (lambda d: sft(d) - 0.5, kd, "baseline_ahead"),
        (kd, sft, "reverse"),
        (sft, sft, "level"),
    ],
)
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:4]])
def test_no_crossing_says_why(base: Curve, method: Curve, status: str, sizes: Sequence[float]) -> None:
    if status == "reverse" and len(sizes) < 5:
        sizes = SIZES[1:]
    found = cross(base, method, sizes, seeds=3)
    assert (found.size, found.status, found.quantiles) == (None, status, None)
    assert found.fraction_without_root == 1.0


def test_the_last_change_from_plus_to_minus_counts() -> None:
    # Differences + - + - at four sizes: the last change lies between the third and the fourth.
    found = cross(
        lambda d: {1.0: 1.0, 10.0: -1.0, 100.0: 1.0, 1000.0: -1.0}[d], lambda _: 0.0, [1.0, 10.0, 100.0, 1000.0]
    )
    assert found.size == pytest.approx(10**2.5)


def test_seeds_are_resampled_jointly() -> None:
    # Noise that both methods of a seed share leaves the crossing in its place in every resample.
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 0.05, 4)
    base = {d: {s: sft(d) + noise[s] for s in range(4)} for d in SIZES}
    method = {d: {s: kd(d) + noise[s] for s in range(4)} for d in SIZES}
    found = find_crossover(base, method, generator, draws=200)
    assert found is not None
    assert found.quantiles is not None
    assert found.quantiles == pytest.approx([145_418] * 3, rel=2e-3)
    assert (found.fraction_without_root, found.interval_kind, found.num_seeds) == (0.0, "range", 4)


def test_the_share_without_a_root_is_counted() -> None:
    # Seed 0 crosses, seed 1 is always ahead and outweighs it: a resample crosses only if it drew 0 twice.
    base = {1.0: {0: 1.0, 1: 9.0}, 10.0: {0: -1.0, 1: 9.0}}
    method = {1.0: {0: 0.0, 1: 0.0}, 10.0: {0: 0.0, 1: 0.0}}
    found = find_crossover(base, method, np.random.default_rng(0), draws=4000)
    assert found is not None
    assert found.status == "method_ahead"
    assert found.fraction_without_root == pytest.approx(0.75, abs=0.03)
    assert found.quantiles == pytest.approx([10**0.5] * 3)


def test_eight_seeds_make_an_interval() -> None:
    assert cross(sft, kd, seeds=8).interval_kind == "95 % interval"


def test_resamples_that_lack_a_size_are_discarded_and_counted() -> None:
    base, method = grid(sft, seeds=2), grid(kd, seeds=2)
    del method[SIZES[0]][1]
    found = find_crossover(base, method, np.random.default_rng(0), draws=4000)
    assert found is not None
    assert found.discarded == pytest.approx(1000, abs=120)  # both draws are seed 1: 1 in 4
    assert found.size == pytest.approx(145_418, abs=1)


def test_one_common_size_is_too_few() -> None:
    assert find_crossover({1.0: {0: 1.0}}, {1.0: {0: 1.0}, 2.0: {0: 1.0}}, np.random.default_rng(0)) is None


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_sizes_and_seeds_does_not_matter(random: object) -> None:
    base, method = grid(sft, seeds=3), grid(kd, seeds=3)
    base[SIZES[2]][1] += 0.01

    def shuffled(old: dict[float, dict[int, float]]) -> dict[float, dict[int, float]]:
        keys = list(old)
        random.shuffle(keys)  # type: ignore[attr-defined]
        return {k: dict(reversed(list(old[k].items()))) for k in keys}

    one = find_crossover(base, method, np.random.default_rng(0), draws=20)
    two = find_crossover(shuffled(base), shuffled(method), np.random.default_rng(0), draws=20)
    assert one == two
