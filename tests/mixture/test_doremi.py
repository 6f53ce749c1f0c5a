from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError, TrainingError
from stillhouse.mixture.doremi import GroupDRO, excess_loss, importance_weights, proxy_loss, step_normaliser

DOMAINS = ("a", "b", "c")
TOKENS = np.array([10, 10, 10])
ONES = np.ones(3)


def moved(dro: GroupDRO, *steps: list[float]) -> GroupDRO:
    """One token a domain, so that the sums are the means."""
    for excess in steps:
        dro.update(np.array(excess), ONES)
    return dro


def test_weights_of_methods_section_6() -> None:
    # w_0 uniform: w' ~ exp([.3, .05, .1]) = [1.349859, 1.051271, 1.105171] / 3.506301, then .999 w' + .001 / 3
    dro = moved(GroupDRO(DOMAINS, TOKENS), [0.3, 0.05, 0.1])
    np.testing.assert_allclose(dro.weights(), [0.384929, 0.299857, 0.315214], atol=1e-6)
    moved(dro, [0.2, 0.05, 0.15])
    np.testing.assert_allclose(dro.weights(), [0.408182, 0.273790, 0.318027], atol=1e-6)
    # (1/3 + .384929 + .408182) / 3 = .375482 and so on; without w_0 (.384929 + .408182) / 2 = .396556
    np.testing.assert_allclose(dro.average(include_initial=True), [0.375482, 0.302327, 0.322192], atol=1e-6)
    np.testing.assert_allclose(dro.average(include_initial=False), [0.396556, 0.286824, 0.316621], atol=1e-6)


def test_before_any_step_the_average_is_uniform_over_trained_domains() -> None:
    dro = GroupDRO(DOMAINS, np.array([10, 0, 10]))
    assert dro.average(include_initial=False).tolist() == [0.5, 0.0, 0.5]


def test_excess_is_clipped_token_by_token() -> None:
    # .5, -.4 -> 0, .1: mean .6 / 3 = .2; the unclipped mean would be .2 / 3 = .066667
    sums, counts = excess_loss(
        torch.tensor([2.0, 1.0, 3.0]), torch.tensor([1.5, 1.4, 2.9]), torch.zeros(3, dtype=torch.int64), 1
    )
    assert counts.tolist() == [3.0]
    assert float(sums / counts) == pytest.approx(0.2, abs=1e-6)


def test_excess_is_kept_apart_by_domain_and_carries_no_gradient() -> None:
    loss = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    sums, counts = excess_loss(loss, torch.zeros(3), torch.tensor([2, 0, 2]), 3)
    assert sums.tolist() == [2.0, 0.0, 5.0]
    assert counts.tolist() == [1.0, 0.0, 2.0]
    assert not sums.requires_grad


def test_absent_domain_reuses_its_last_excess() -> None:
    counts = np.array([4.0, 4.0, 0.0])
    with_all, without_c = (moved(GroupDRO(DOMAINS, TOKENS), [0.3, 0.05, 0.1]) for _ in range(2))
    with_all.update(np.array([0.2, 0.05, 0.1]), ONES)
    without_c.update(np.array([0.8, 0.2, 0.0]), counts)
    np.testing.assert_allclose(without_c.weights(), with_all.weights())


def test_never_seen_domain_takes_the_mean_or_the_given_start() -> None:
    counts = np.array([1.0, 1.0, 0.0])
    ours = GroupDRO(DOMAINS, TOKENS, smoothing=0.0)
    ours.update(np.array([0.4, 0.2, 0.0]), counts)
    expected = np.exp([0.4, 0.2, 0.3])  # the absent one: (.4 + .2) / 2
    np.testing.assert_allclose(ours.weights(), expected / expected.sum())
    theirs = GroupDRO(DOMAINS, TOKENS, smoothing=0.0, initial_excess=math.log(100))
    theirs.update(np.array([0.4, 0.2, 0.0]), counts)
    expected = np.exp([0.4, 0.2, math.log(100)])
    np.testing.assert_allclose(theirs.weights(), expected / expected.sum())


def test_domains_without_training_documents_stay_at_zero() -> None:
    dro = GroupDRO(DOMAINS, np.array([5, 0, 5]), smoothing=0.1, initial_excess=math.log(100))
    dro.update(np.array([0.1, 9.0, 0.1]), np.array([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(dro.weights(), [0.5, 0, 0.5])
    with pytest.raises(DataError, match="no domain has training documents"):
        GroupDRO(DOMAINS, np.zeros(3, np.int64))


def test_bad_steps_are_named() -> None:
    dro = GroupDRO(DOMAINS, TOKENS)
    with pytest.raises(TrainingError, match="excess loss in domain 'b' is nan"):
        dro.update(np.array([0.1, math.nan, 0.1]), ONES)
    with pytest.raises(TrainingError, match="no target token of an active domain"):
        dro.update(np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(dro.weights(), 1 / 3)


@given(
    st.lists(st.lists(st.floats(0, 1e4), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(0.01, 5),
    st.floats(0, 1),
)
def test_weights_stay_a_distribution_above_the_floor(steps: list[list[float]], eta: float, c: float) -> None:
    dro = moved(GroupDRO(DOMAINS, TOKENS, eta=eta, smoothing=c), *steps)
    assert dro.weights().sum() == pytest.approx(1)
    assert (dro.weights() >= c / 3 * (1 - 1e-9)).all()
    assert dro.average(include_initial=True).sum() == pytest.approx(1)


def test_a_saved_proxy_goes_on_bit_for_bit() -> None:
    whole, resumed = (GroupDRO(DOMAINS, np.array([5, 0, 5])) for _ in range(2))
    whole.update(np.array([0.3, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))  # c unseen: NaN in the state
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict(), allow_nan=False)))
    for dro in (whole, resumed):
        dro.update(np.array([0.2, 0.0, 0.5]), np.array([3.0, 0.0, 2.0]))
    np.testing.assert_array_equal(resumed.weights(), whole.weights())
    np.testing.assert_array_equal(resumed.average(include_initial=True), whole.average(include_initial=True))
    with pytest.raises(TrainingError, match="the data has x, y, z"):
        GroupDRO(("x", "y", "z"), TOKENS).load_state_dict(whole.state_dict())


def test_proxy_loss_divides_by_the_sampling_share() -> None:
    # w = [.5, .3, .2], batches hold the domains in shares [.25, .75, 0]: a token counts 2, .4 and 0.
    token_weights = importance_weights(np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.75, 0.0]))
    np.testing.assert_allclose(token_weights, [2.0, 0.4, 0.0])
    loss = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    normaliser = step_normaliser(token_weights, np.array([1, 2, 0]))
    assert normaliser == pytest.approx(2.8)  # 2 + .4 + .4
    value = proxy_loss(loss, torch.tensor([0, 1, 1]), token_weights, normaliser)
    assert value.item() == pytest.approx((2 * 1 + 0.4 * 2 + 0.4 * 3) / 2.8)
    value.backward()
    torch.testing.assert_close(loss.grad, torch.tensor([2.0, 0.4, 0.4]) / 2.8)


def test_proxy_loss_does_not_depend_on_micro_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(12, generator=generator)
    ids = torch.randint(3, (12,), generator=generator)
    token_weights = importance_weights(np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.1, 0.3]))
    normaliser = step_normaliser(token_weights, torch.bincount(ids, minlength=3).numpy())
    whole = proxy_loss(loss, ids, token_weights, normaliser)
    parts = proxy_loss(loss[:5], ids[:5], token_weights, normaliser) + proxy_loss(
        loss[5:], ids[5:], token_weights, normaliser
    )
    torch.testing.assert_close(parts, whole)


def test_proxy_loss_of_no_tokens_is_zero_with_a_graph() -> None:
    loss = torch.zeros(0, requires_grad=True)
    value = proxy_loss(loss, torch.zeros(0, dtype=torch.int64), ONES, 4.0)
    assert value.item() == 0.0
    value.backward()
    assert loss.grad is not None
