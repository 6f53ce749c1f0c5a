"""Which of the good candidates are kept."""

from __future__ import annotations

import pytest

from stillhouse.synthesis.candidates import Candidate, Rejection, candidates_needed, count_reasons, keep


def candidates(nlls: list[float | None]) -> list[Candidate]:
    return [Candidate(i, "d", (), (), f"text {i}", nll=nll) for i, nll in enumerate(nlls)]


def reasons(outcome: list[Candidate]) -> list[str | None]:
    return [None if c.rejection is None else c.rejection.reason for c in outcome]


def test_two_hundred_seeds_at_ratio_ten() -> None:
    # 2,000 rows at an acceptance of .4.
    assert candidates_needed(10 * 200, 0.4) == 5000
    assert candidates_needed(10, 0.3) == 34
    assert candidates_needed(10, 0) is None


def test_the_ends_of_the_nll_go() -> None:
    # floor(.05 * 40) = 2 at either end.
    nlls: list[float | None] = [float(i % 40) for i in range(40)]
    outcome = keep(candidates(nlls), 100, 0.05)
    assert [c.number for c in outcome if not c.passed] == [0, 1, 38, 39]
    assert outcome[0].rejection == Rejection("nll", "NLL 0.000")


@pytest.mark.parametrize("count", [0, 1, 19])
def test_few_rows_have_no_ends(count: int) -> None:
    assert all(c.passed for c in keep(candidates([1.0] * count), 100, 0.05))


def test_rows_without_nll_stay() -> None:
    nlls: list[float | None] = [None, *[float(i) for i in range(10)]]
    assert reasons(keep(candidates(nlls), 100, 0.1)) == [None, "nll", *[None] * 8, "nll"]


def test_what_is_not_needed_is_surplus() -> None:
    outcome = keep(candidates([5.0, 1.0, 2.0, 3.0, 9.0, 4.0]), 3, 0.2)
    # Of six, one at either end; then three in order.
    assert reasons(outcome) == [None, "nll", None, None, "nll", "surplus"]
    assert count_reasons(outcome) == {"nll": 2, "surplus": 1}
