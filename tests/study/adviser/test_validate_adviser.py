"""The adviser asked about sizes that a study has and it was not shown (study/adviser/validate.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.study.adviser.validate import judge, validate_adviser
from stillhouse.study.analysis.intervals import Interval, t_interval

SIZES = (100, 300, 900, 2700)


def study(gain: Callable[[int], float], *, seeds: int = 3, spread: float = 0.001) -> dict[str, Any]:
    """SFT at 2.0 nats; KD better by ``gain(size)`` plus ``spread`` for each seed."""
    rows = [
        {
            "labels": {"method": method, "size": str(size)},
            "seed": seed,
            "status": "done",
            "run": "runs/x",
            "error": None,
            "result": {
                "nll": 2.0 - (gain(size) + spread * seed if method == "kd" else 0.0),
                "teacher_nll": 1.5,
                "train_rows": size,
                "flops": {"student": 1, "teacher": method == "kd", "total": 1},
            },
        }
        for size in SIZES
        for seed in range(seeds)
        for method in ("sft", "kd")
    ]
    axes = {"method": ["sft", "kd"], "size": [str(d) for d in SIZES]}
    return {"name": "x", "axes": axes, "seeds": list(range(seeds)), "rows": rows}


def test_steady_gains_are_foreseen() -> None:
    # From {100, 300} about 900 and 2,700, from {100, 300, 900} about 2,700.
    found = validate_adviser(study(lambda _: 0.1))
    assert [(t.from_rows, t.to_rows) for t in found.trials] == [(300, 900), (300, 2700), (900, 2700)]
    assert (found.right, found.wrong, found.undecided, found.unclear) == (3, 0, 0, 0)
    assert found.rate is not None
    assert (found.rate.mean, found.rate.source) == (1.0, "trials")
    assert "right in 3 of 3" in found.sentence()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_sudden_turn_is_held_against_it() -> None:
    found = validate_adviser(study(lambda size: 0.1 if size < 2700 else -0.1))
    outcomes = {(t.from_rows, t.to_rows): t.outcome for t in found.trials}
    assert outcomes == {(300, 900): "right", (300, 2700): "wrong", (900, 2700): "wrong"}


def test_noise_is_undecided_and_never_counted() -> None:
    found = validate_adviser(study(lambda _: 0.0, spread=0.5))
    assert (found.undecided, found.rate) == (3, None)
    assert "decided in none of 3" in found.sentence()


def test_one_method_gives_no_trial() -> None:
    data = study(lambda _: 0.1)
    data["rows"] = [r for r in data["rows"] if r["labels"]["method"] == "sft"]
    assert validate_adviser(data).trials == []


CLEAR, LEVEL, UNCLEAR = (
    Interval(0.1, 0.05, 0.15, 3, 0.01),
    t_interval([0.001, 0.0, -0.001]),
    t_interval([0.3, -0.3, 0.1]),
)


@pytest.mark.parametrize(
    ("verdict", "truth", "outcome"),
    [
        ("method", CLEAR, "right"),
        ("baseline", CLEAR, "wrong"),
        ("either", CLEAR, "wrong"),
        ("either", LEVEL, "right"),
        ("method", LEVEL, "wrong"),
        ("method", UNCLEAR, "unclear"),
        ("cannot_tell", CLEAR, "undecided"),
    ],
)
def test_judging(verdict: str, truth: Interval, outcome: str) -> None:
    assert judge(verdict, truth) == outcome
