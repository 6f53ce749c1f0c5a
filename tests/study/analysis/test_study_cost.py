"""Cost beside quality (study/analysis/cost.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_rows import result_of, row_of, study_of

from stillhouse.study.analysis.cost import cost_points, pareto_front
from stillhouse.study.analysis.rows import read_study


def test_front_by_hand() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (2.0, 2.5), (3.0, 2.0), (4.0, 1.0), (None, 0.0)]
    # (2, 2.5) is worse at the same price, (3, 2) dearer at the same loss; no cost, no verdict
    assert pareto_front(points) == [True, True, False, False, True, None]


def test_twins_stay_on_the_front_together() -> None:
    assert pareto_front([(1.0, 1.0), (1.0, 1.0)]) == [True, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_point_off_the_front_is_beaten_by_one_on_it(points: list[tuple[int, int]]) -> None:
    front = pareto_front([(float(c), float(q)) for c, q in points])
    best = [p for p, on in zip(points, front, strict=True) if on]
    assert best
    for (cost, loss), on in zip(points, front, strict=True):
        assert on == (not any(c <= cost and q <= loss and (c, q) != (cost, loss) for c, q in best))


def test_teacher_share_counts_preparation() -> None:
    cached = result_of(1.9) | {"flops": {"student": 6.0, "teacher": 0.0, "total": 6.0, "preparation": 2.0}}
    rows = [
        row_of({"method": "sft"}, 0, result_of(2.0)),
        row_of({"method": "kd"}, 0, cached),
        row_of({"method": "live"}, 0, result_of(1.9, teacher_flops=18)),
    ]
    found = {p.arm.method: p for p in cost_points(read_study(study_of(rows)))}
    assert (found["kd"].flops, found["kd"].teacher_share) == (8.0, 0.25)
    assert (found["live"].flops, found["live"].teacher_share) == (24.0, 0.75)
    assert [found[m].on_flops_front for m in ("sft", "kd", "live")] == [True, True, False]
    assert found["sft"].seconds == pytest.approx(2.0)


def test_missing_costs_stay_missing() -> None:
    result = result_of(2.0) | {"flops": None, "seconds": None}
    (point,) = cost_points(read_study(study_of([row_of({"method": "sft"}, 0, result)])))
    assert (point.flops, point.teacher_share, point.on_flops_front, point.on_seconds_front) == (None,) * 4
