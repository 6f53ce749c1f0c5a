from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.document import Document, DocumentSet
from stillhouse.errors import DataError, RecipeError
from stillhouse.mixture.validation_budget import (
    MINIMUM_TOKENS,
    TokenCosts,
    choose_validation_tokens,
    count_content_targets,
    predict_overhead,
    split_driving_documents,
    warn_of_thin_domains,
)

RUN = {"num_domains": 8, "interval_steps": 50, "num_steps": 500, "tokens_per_step": 4096}
COSTS = TokenCosts(train=4.0, student=1.0, teacher=2.0)


def test_overhead_counts_the_student_each_interval_and_the_teacher_once() -> None:
    # 8 domains * 1000 tokens * (10 measurements * 1 + 2) = 96,000; training 500 * 4096 * 4 = 8,192,000
    budget = predict_overhead(COSTS, 1000, **RUN)
    assert budget.measurements == 10
    assert budget.overhead == pytest.approx(96_000 / 8_192_000)


def test_a_started_interval_is_measured() -> None:
    assert predict_overhead(COSTS, 1, **{**RUN, "num_steps": 501}).measurements == 11


def test_budget_fills_three_percent() -> None:
    # .03 * 8,192,000 / (8 * 12) = 2560
    budget = choose_validation_tokens(COSTS, available_tokens=100_000, **RUN)
    assert budget.tokens_per_domain == 2560
    assert budget.overhead == pytest.approx(0.03)
    assert choose_validation_tokens(COSTS, available_tokens=1000, **RUN).tokens_per_domain == 1000


def test_costs_by_the_usual_rule() -> None:
    # student 10 parameters, teacher 100: training 6 * 10 + 2 * 100
    assert TokenCosts.from_parameters(10, 100, distilled=True) == TokenCosts(260.0, 20.0, 200.0)
    assert TokenCosts.from_parameters(10, 100, distilled=False).train == 60.0


def test_an_interval_too_short_is_named_with_the_length_that_fits() -> None:
    # 256 tokens * 8 * (m + 2) <= 245,760 <=> m <= 118 measurements; 500 steps / 5 = 100 fits, / 4 = 125 does not
    with pytest.raises(RecipeError, match=r"mixture\.interval_steps=1: .*raise it to at least 5, or set"):
        choose_validation_tokens(COSTS, available_tokens=10_000, **{**RUN, "interval_steps": 1})
    assert choose_validation_tokens(
        COSTS, available_tokens=10_000, **{**RUN, "interval_steps": 5}
    ).tokens_per_domain == math.floor(245_760 / (8 * 102))


def test_a_run_too_short_for_any_interval_is_named() -> None:
    with pytest.raises(RecipeError, match="train longer, or set"):
        choose_validation_tokens(COSTS, available_tokens=10_000, **{**RUN, "interval_steps": 2, "num_steps": 10})


positive = st.floats(min_value=1e-4, max_value=1e4)


@given(
    positive, positive, positive, st.integers(1, 20), st.integers(1, 200), st.integers(1, 3000), st.integers(1, 10**6)
)
def test_the_prediction_never_exceeds_the_limit(
    train: float, student: float, teacher: float, domains: int, interval: int, steps: int, tokens: int
) -> None:
    run = {"num_domains": domains, "interval_steps": interval, "num_steps": steps, "tokens_per_step": tokens}
    costs = TokenCosts(train, student, teacher)
    try:
        budget = choose_validation_tokens(costs, available_tokens=10**12, **run)
    except RecipeError:
        assert predict_overhead(costs, MINIMUM_TOKENS, **run).overhead > 0.03
        return
    assert budget.overhead <= 0.03
    assert predict_overhead(costs, budget.tokens_per_domain + 1, **run).overhead > 0.03 * (1 - 1e-9)


def rows_of(*domains: list[list[int]]) -> DocumentSet:
    """Per domain a list of rows, each a list of its pieces' lengths."""
    documents, rows = [], []
    row = 0
    for domain, texts in enumerate(domains):
        for pieces in texts:
            for length in pieces:
                uid = len(documents).to_bytes(16, "little")
                documents.append(Document(np.zeros(length, np.int32), np.ones(length, np.bool_), domain, uid))
                rows.append(row)
            row += 1
    return DocumentSet.build(documents, rows, [f"d{i}" for i in range(len(domains))], "tokenizer")


def test_driving_and_scoring_documents_are_disjoint_and_rows_stay_whole() -> None:
    documents = rows_of([[10, 10, 5]] * 6, [[20]] * 6)
    driving, scoring = split_driving_documents(documents, 50, seed=0, active=np.array([True, True]))
    assert sorted([*driving, *scoring]) == list(range(len(documents)))
    assert not set(documents.rows[driving]) & set(documents.rows[scoring])
    for domain, tokens in enumerate((50, 40)):  # 2 rows of 25; a third row of 20 would be too much
        assert documents.lengths[driving][documents.domain_ids[driving] == domain].sum() == tokens


def test_one_row_is_always_left_for_scoring() -> None:
    documents = rows_of([[10]] * 4, [[10]] * 2)
    driving, scoring = split_driving_documents(documents, 10**9, seed=0, active=np.array([True, True]))
    assert len(driving) == 3 + 1
    assert len(scoring) == 2


def test_the_draw_depends_on_the_seed_alone() -> None:
    documents = rows_of([[10]] * 50)
    draws = [split_driving_documents(documents, 100, seed=s, active=np.array([True]))[0].tolist() for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_trained_domain_without_enough_validation_rows_is_named(rows: int) -> None:
    documents = rows_of([[10]] * 4, [[10, 10]] * rows)
    with pytest.raises(DataError, match=rf"data\.validation: domain 'd1' has {rows} usable validation rows"):
        split_driving_documents(documents, 10, seed=0, active=np.array([True, True]))
    driving, scoring = split_driving_documents(documents, 10, seed=0, active=np.array([True, False]))
    assert len(driving) == 1
    assert len(scoring) == len(documents) - 1


def test_targets_are_counted_without_prompts_and_ends_of_turns() -> None:
    end = 7
    documents = []
    for domain, (prompt, answer) in enumerate([(90, 10), (5, 3), (5, 0)]):
        ids = np.array([1] * prompt + [2] * answer + [end], np.int32)
        mask = np.arange(len(ids)) >= prompt
        documents.append(Document(ids, mask, domain, domain.to_bytes(16, "little")))
    found = DocumentSet.build(documents, [0, 1, 2], ["a", "b", "c"], "tokenizer")
    assert count_content_targets(found, {end}).tolist() == [10, 3, 0]
    assert count_content_targets(found, frozenset()).tolist() == [11, 4, 1]


def test_domains_with_few_targets_are_named_and_those_without_any_refused() -> None:
    documents = rows_of([[10]], [[10]], [[10]])
    targets, all_active = np.array([MINIMUM_TOKENS, 12, 0]), np.array([True, True, True])
    warning = warn_of_thin_domains(documents, targets, active=np.array([True, True, False]), where="mixture of main")
    assert warning is not None
    assert "mixture of main: fewer than 256 target tokens measure the gap of 'd1' (12)," in warning
    first = np.array([True, False, False])
    assert warn_of_thin_domains(documents, targets, active=first, where="mixture of main") is None
    with pytest.raises(DataError, match="domain 'd2' that drive the mixture of main have no target token"):
        warn_of_thin_domains(documents, targets, active=all_active, where="mixture of main")
