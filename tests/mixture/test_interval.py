from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data.document import Document, DocumentSet
from stillhouse.errors import RecipeError, TrainingError
from stillhouse.mixture.interval import IntervalPlan, cut_into_steps


def document_set(*lengths: list[int]) -> DocumentSet:
    """One list of document lengths per domain, laid out domain after domain."""
    documents, names = [], [f"d{i}" for i in range(len(lengths))]
    for domain, sizes in enumerate(lengths):
        for size in sizes:
            number = len(documents)
            mask = np.ones(size, np.bool_)
            mask[0] = False
            uid = number.to_bytes(16, "little")
            documents.append(Document(np.zeros(size, np.int32), mask, domain, uid))
    return DocumentSet.build(documents, range(len(documents)), names, "tokenizer")


def plan_of(
    documents: DocumentSet, *, steps: int = 40, interval: int = 5, tokens: int = 100, seed: int = 0
) -> IntervalPlan:
    return IntervalPlan(documents, seed=seed, interval_steps=interval, num_steps=steps, tokens_per_step=tokens)


def whole(plan: IntervalPlan, *, steps: int = 5) -> list[int]:
    start = plan.interval * plan.interval_steps
    return [i for step in range(start, start + steps) for i in plan.documents(step)]


def varied(num_domains: int = 3, size: int = 40, seed: int = 0) -> DocumentSet:
    generator = np.random.default_rng(seed)
    return document_set(*[generator.integers(2, 40, size).tolist() for _ in range(num_domains)])


def test_quotas_are_in_tokens_and_overshoot_is_carried() -> None:
    # 1 step of 100 tokens: quotas 70 and 30; documents of 20 give 80 (10 too many) and 40 (10 too many).
    plan = plan_of(document_set([20] * 50, [20] * 50), steps=3, interval=1)
    plan.advance(np.array([0.7, 0.3]))
    assert [d.quota_tokens for d in plan.draws] == [70, 30]
    assert [d.drawn_tokens for d in plan.draws] == [80, 40]
    assert [d.balance_tokens for d in plan.draws] == [-10, -10]
    # next: 70 - 10 = 60 and 30 - 10 = 20, met exactly
    plan.advance(np.array([0.7, 0.3]))
    assert [d.drawn_tokens for d in plan.draws] == [60, 20]
    assert [d.balance_tokens for d in plan.draws] == [0, 0]


def test_every_document_once_before_any_twice_and_cycles_are_counted() -> None:
    documents = document_set([10] * 7, [10] * 100)
    plan = plan_of(documents, steps=4, interval=2, tokens=100)
    plan.advance(np.array([0.5, 0.5]))  # 10 documents of d0, which has 7: one cycle and 3 of the next
    taken = Counter(i for i in whole(plan, steps=2) if documents.domain_ids[i] == 0)
    assert sorted(taken) == list(range(7))
    assert sum(taken.values()) == 10
    assert max(taken.values()) == 2
    assert plan.draws[0].passes == pytest.approx(1 + 3 / 7)
    plan.advance(np.array([0.5, 0.5]))  # 4 that are left of the second cycle, then 6 of the third
    assert plan.draws[0].passes == pytest.approx(20 / 7)
    taken.update(i for i in whole(plan, steps=2) if documents.domain_ids[i] == 0)
    assert set(taken.values()) == {2, 3}


def test_cycles_are_shuffled_anew_and_documents_are_mixed() -> None:
    plan = plan_of(document_set([10] * 30, [10] * 30), steps=12, interval=6)
    orders = []
    for _ in range(2):  # 30 documents of each domain: a whole cycle per interval
        plan.advance(np.array([0.5, 0.5]))
        orders.append(whole(plan, steps=6))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    assert orders[0] != orders[1]
    assert len({i // 30 for i in orders[0][:10]}) == 2  # the first step sees both domains


def test_the_last_interval_may_be_shorter() -> None:
    plan = plan_of(document_set([10] * 30), steps=7, interval=5)
    plan.advance(np.ones(1))
    plan.advance(np.ones(1))
    assert plan.draws[0].quota_tokens == 200
    assert len(plan.documents(5)) == len(plan.documents(6)) == 10
    with pytest.raises(AssertionError, match="step 7 is not in interval 1"):
        plan.documents(7)


def test_a_domain_of_weight_zero_or_without_documents_gives_nothing() -> None:
    plan = plan_of(document_set([10] * 9, [], [10] * 9))
    plan.advance(np.array([0.0, 0.0, 1.0]))
    assert {i // 9 for i in whole(plan)} == {1}  # d2's documents are 9 to 17
    assert plan.draws[1].passes == 0.0


def test_documents_longer_than_a_step_still_fill_every_step() -> None:
    plan = plan_of(document_set([500] * 4, [500] * 4, [500] * 4), steps=30, interval=3, tokens=100)
    totals = np.zeros(3)
    for _ in range(10):
        plan.advance(np.array([0.5, 0.5, 0.0]))
        assert all(len(plan.documents(plan.interval * 3 + k)) == 1 for k in range(3))
        totals += [d.documents for d in plan.draws]
    assert totals[2] == 0
    assert abs(totals[0] - totals[1]) <= 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.4, 0.0], r"mixture\.weights: the weights sum to 0\.9, not to 1"),
        ([1.5, -0.5, 0.0], r"mixture\.weights\.d1=-0\.5"),
        ([0.5, 0.0, 0.5], r"mixture\.weights\.d2=0\.5: this domain is empty"),
        ([np.nan, 0.5, 0.5], r"mixture\.weights\.d0=nan"),
    ],
)
def test_weights_that_cannot_be_drawn_are_refused(weights: list[float], message: str) -> None:
    plan = plan_of(document_set([10] * 5, [10] * 5, []))
    with pytest.raises(RecipeError, match=message):
        plan.advance(np.array(weights))
    assert plan.interval == -1


def test_an_interval_longer_than_the_run_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"mixture\.interval_steps=50: the run has only 40 steps"):
        plan_of(varied(), interval=50)
    assert plan_of(varied(), interval=40).interval_steps == 40


def test_the_plan_depends_on_the_seed() -> None:
    plans = [plan_of(varied(), seed=seed) for seed in (0, 0, 1)]
    for plan in plans:
        plan.advance(np.array([0.2, 0.3, 0.5]))
    assert whole(plans[0]) == whole(plans[1]) != whole(plans[2])


WEIGHTS = [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.25, 0.75]]


@pytest.mark.parametrize("intervals", [0, 1, 3])
def test_a_run_killed_inside_an_interval_goes_on_identically(intervals: int) -> None:
    documents = varied(size=15)  # small enough that domains cycle
    first, resumed = plan_of(documents, steps=25), plan_of(documents, steps=25)
    for weights in WEIGHTS[:intervals]:
        first.advance(np.array(weights))
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert resumed.state_dict() == first.state_dict()
    for weights in [None, *WEIGHTS[intervals:]]:
        if weights is not None:
            first.advance(np.array(weights))
            resumed.advance(np.array(weights))
        assert resumed.draws == first.draws
        if first.interval >= 0:
            assert whole(resumed) == whole(first)


def test_state_of_other_data_or_another_recipe_is_refused() -> None:
    state = plan_of(varied()).state_dict()
    with pytest.raises(TrainingError, match="the checkpoint was made with documents="):
        plan_of(varied(size=41)).load_state_dict(state)
    with pytest.raises(TrainingError, match="interval_steps=5, and now it is 4"):
        plan_of(varied(), interval=4).load_state_dict(state)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]], int, int, int]:
    n = draw(st.integers(1, 4))
    lengths = [draw(st.lists(st.integers(1, 60), min_size=1, max_size=12)) for _ in range(n)]
    raw = st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(any)
    weights = draw(st.lists(raw, min_size=1, max_size=4))
    shares = [[w / sum(each) for w in each] for each in weights]
    return lengths, shares, draw(st.integers(1, 5)), draw(st.integers(1, 80)), draw(st.integers(0, 3))


@settings(max_examples=60)
@given(runs())
def test_whatever_comes_quotas_balances_and_steps_add_up(
    run: tuple[list[list[int]], list[list[float]], int, int, int],
) -> None:
    lengths, shares, interval, tokens, seed = run
    documents = document_set(*lengths)
    plan = plan_of(documents, steps=interval * len(shares), interval=interval, tokens=tokens, seed=seed)
    owed = np.zeros(len(lengths), dtype=np.int64)
    seen: Counter[int] = Counter()
    for share in shares:
        plan.advance(np.array(share))
        order = whole(plan, steps=interval)
        seen.update(order)
        drawn = np.bincount(documents.domain_ids[order], weights=documents.lengths[order], minlength=len(lengths))
        owed += [d.quota_tokens for d in plan.draws] - drawn.astype(np.int64)
        assert sum(d.quota_tokens for d in plan.draws) == interval * tokens
        assert [d.balance_tokens for d in plan.draws] == owed.tolist()
        assert (owed <= 0).all()
        assert all(len(plan.documents(plan.interval * interval + k)) > 0 for k in range(interval))
    for domain in range(len(lengths)):  # without replacement within a cycle
        times = [seen[int(i)] for i in np.flatnonzero(documents.domain_ids == domain)]
        assert max(times) - min(times) <= 1


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.data())
def test_steps_are_even_to_within_a_document(lengths: list[int], data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, len(lengths)))
    sizes = np.array(lengths)
    parts = cut_into_steps(np.arange(len(lengths)), sizes, steps)
    assert [i for part in parts for i in part] == list(range(len(lengths)))
    assert len(parts) == steps
    assert all(len(part) for part in parts)
    mean = sizes.sum() / steps
    if max(lengths) < mean:  # no part had to be filled by force
        assert all(abs(sizes[part].sum() - mean) <= max(lengths) for part in parts)
