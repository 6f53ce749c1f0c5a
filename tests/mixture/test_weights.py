from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError, RecipeError
from stillhouse.mixture.weights import (
    active_domains,
    check_weights,
    equal_weights,
    fixed_weights,
    floats_from_json,
    floats_to_json,
    largest_remainder,
    proportional_weights,
)

DOMAINS = ("code", "math", "wiki")
TOKENS = np.array([600, 0, 200])
FULL = np.array([600, 200, 200])


def test_proportional_and_equal_leave_inactive_domains_out() -> None:
    assert proportional_weights(DOMAINS, TOKENS).tolist() == [0.75, 0.0, 0.25]  # 600/800, 0, 200/800
    assert equal_weights(DOMAINS, TOKENS).tolist() == [0.5, 0.0, 0.5]
    assert active_domains(DOMAINS, TOKENS).tolist() == [True, False, True]


def test_no_domain_with_documents_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.train: no domain has training documents \(domains: code, math, wiki\)"):
        active_domains(DOMAINS, np.zeros(3, np.int64))
    with pytest.raises(DataError, match="domains: none"):
        active_domains((), np.zeros(0, np.int64))


def test_fixed_weights_follow_the_order_of_the_domains() -> None:
    given_ = {"wiki": 0.5, "code": 0.2, "math": 0.3}
    assert fixed_weights(given_, DOMAINS, FULL, where="mixture.weights").tolist() == [0.2, 0.3, 0.5]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"code": 0.5, "maths": 0.5}, r"mixture\.weights\.maths: there is no such domain.*Did you mean 'math'\?"),
        ({"code": 0.5, "math": 0.5}, r"mixture\.weights: no weight for wiki; give 0"),
        ({"code": 0.5, "math": 0.5, "wiki": 0.5}, r"mixture\.weights: the weights sum to 1\.5, not to 1"),
        ({"code": 1.5, "math": 0.0, "wiki": -0.5}, r"mixture\.weights\.wiki=-0\.5: .*not negative"),
        ({"code": math.nan, "math": 0.0, "wiki": 1.0}, r"mixture\.weights\.code=nan"),
        ({"code": math.inf, "math": 0.0, "wiki": 1.0}, r"mixture\.weights\.code=inf"),
    ],
)
def test_fixed_weights_refuse(given_: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        fixed_weights(given_, DOMAINS, FULL, where="mixture.weights")


def test_weight_on_an_empty_domain_is_named() -> None:
    with pytest.raises(RecipeError, match=r"w\.json\.math=0\.5: this domain is empty"):
        fixed_weights({"code": 0.25, "math": 0.5, "wiki": 0.25}, DOMAINS, TOKENS, where="w.json")
    check_weights(np.array([0.5, 0.0, 0.5]), DOMAINS, TOKENS, where="w.json")


def test_quotas_of_methods_section_5() -> None:
    # r_1 * 1000 = 329.710, 409.777, 260.513: floors 329, 409, 260 leave 2 for the remainders .777 and .710.
    assert largest_remainder(np.array([0.329710, 0.409777, 0.260513]), 1000).tolist() == [330, 410, 260]


def test_quota_ties_go_to_the_earlier_domain_and_zero_weights_get_nothing() -> None:
    assert largest_remainder(np.array([0.0, 0.5, 0.5]), 3).tolist() == [0, 2, 1]


@given(
    st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3),
    st.integers(min_value=0, max_value=10**10),
)
def test_quotas_sum_up_and_stay_within_one_of_the_share(raw: list[float], total: int) -> None:
    weights = np.array(raw) / sum(raw)
    quotas = largest_remainder(weights, total)
    assert int(quotas.sum()) == total
    assert np.all(np.abs(quotas - weights / weights.sum() * total) < 1 + 1e-5)
    assert np.all(quotas[weights == 0] == 0)


@given(st.lists(st.floats(), max_size=5))
def test_json_keeps_every_bit(values: list[float]) -> None:
    array = np.array(values, dtype=np.float64)
    text = json.dumps(floats_to_json(array), allow_nan=False)
    np.testing.assert_array_equal(floats_from_json(json.loads(text)), array)
