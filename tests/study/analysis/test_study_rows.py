"""Reading ``study_result.json`` (study/analysis/rows.py)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from study_rows import result_of, row_of, sft_kd_study, study_of

from stillhouse.errors import DataError, RecipeError
from stillhouse.study.analysis.rows import choose_baseline, is_score, read_study


def test_order_of_rows_does_not_matter() -> None:
    study = sft_kd_study(noise=0.1)
    mixed = {**study, "rows": random.Random(3).sample(study["rows"], len(study["rows"]))}
    assert read_study(mixed).runs == read_study(study).runs


def test_sizes_come_from_the_runs_and_ascend() -> None:
    rows = [
        row_of({"method": "sft", "size": label}, 0, result_of(2.0, rows=n))
        for label, n in (("big", 900), ("small", 90))
    ]
    sizes = read_study(study_of(rows)).sizes
    assert [(s.label, s.rows, s.tokens) for s in sizes] == [("small", 90, 4500), ("big", 900, 45000)]


def test_failed_and_missing_runs_are_listed() -> None:
    rows = [
        row_of({"method": "sft"}, 0, result_of(2.0)),
        row_of({"method": "kd"}, 0, None, "failed"),
        row_of({"method": "kd"}, 1, None, "pending"),
    ]
    study = read_study(study_of(rows))
    assert [(u["status"], u["error"]) for u in study.unfinished] == [("failed", "out of memory"), ("pending", None)]
    assert study.methods == ("sft",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("axes"), "`name`, `axes` and `rows`"),
        (lambda s: s["rows"][1].pop("seed"), r"rows\[1\] has no `seed`"),
        (lambda s: s["rows"][0]["labels"].update(method="ppo"), r"rows\[0\].labels.method='ppo'"),
        (lambda s: s["rows"][0].update(result=None), "result.nll is None"),
        (lambda s: s["rows"][0]["result"].update(nll=float("nan")), "result.nll is nan"),
        (lambda s: s["rows"].append(s["rows"][0]), "two rows for"),
    ],
)
def test_damage_is_named(change: Any, message: str) -> None:
    study = sft_kd_study(seeds=1)
    change(study)
    with pytest.raises(DataError, match=message):
        read_study(study)


def test_baseline_is_sft_then_cpt_then_one_without_a_teacher() -> None:
    def chosen(*methods: str) -> str | None:
        rows = [row_of({"method": m}, 0, result_of(2.0, teacher_flops=m.startswith("kd"))) for m in methods]
        return choose_baseline(read_study(study_of(rows)), None)

    assert chosen("kd", "cpt", "SFT") == "SFT"
    assert chosen("kd", "CPT", "plain") == "CPT"
    assert chosen("kd", "plain") == "plain"
    assert chosen("kd", "kd2") == "kd"
    assert chosen("kd") is None


def test_a_baseline_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"baseline=sfd.*Did you mean 'sft'"):
        choose_baseline(read_study(sft_kd_study(seeds=1)), "sfd")


def test_a_method_prepared_from_a_cache_uses_its_teacher() -> None:
    result = result_of(2.0) | {"flops": {"student": 6.0, "teacher": 0.0, "total": 6.0, "preparation": 2.0}}
    study = read_study(study_of([row_of({"method": "kd"}, 0, result), row_of({"method": "sft"}, 0, result_of(2.0))]))
    assert (study.uses_teacher("kd"), study.uses_teacher("sft")) == (True, False)


@pytest.mark.parametrize(
    ("metric", "higher_is_better"),
    [
        ("exact_match", True),
        ("rouge_l", True),
        ("ece", False),
        ("calibration/ece", False),
        ("mmlu.acc", True),
        ("eot_nll", False),
    ],
)
def test_direction_of_metrics(metric: str, higher_is_better: bool) -> None:
    assert is_score(metric) is higher_is_better
