from __future__ import annotations

import math
from typing import Any

import pytest
from study_rows import result_of, row_of, sft_kd_study, study_of

from stillhouse.study.analysis.gains import domain_gains, gain_slopes, gains, ratios, teacher_steps
from stillhouse.study.analysis.rows import Study, read_study


def cell(method: str, nll: float, *, size: str = "100", teacher: str | None = None, seed: int = 0, **more: Any) -> Any:
    labels = {"method": method, "size": size} | ({"teacher": teacher} if teacher else {})
    flops = 0 if method == "sft" else 20
    return row_of(labels, seed, result_of(nll, rows=int(size), teacher_flops=flops, **more))


def read(*rows: Any) -> Study:
    return read_study(study_of(rows))


def test_gain_is_positive_where_the_method_is_better_and_paired_by_seed() -> None:
    study = read(
        *(cell("sft", nll, seed=s) for s, nll in enumerate((2.0, 3.0))),
        *(cell("kd", nll, seed=s) for s, nll in enumerate((1.9, 2.8))),
        cell("kd", 9.0, seed=7),
    )
    (gain,) = gains(study, "sft")
    assert gain.difference.mean == pytest.approx(0.15)
    assert (gain.difference.n, gain.seeds_without_partner, gain.rows) == (2, 1, 100)


def test_gap_recovered_by_hand() -> None:
    # teacher 1.5, SFT 2.0: room .5; KD 1.9 recovers .1 / .5
    (gain,) = gains(read(cell("sft", 2.0), cell("kd", 1.9)), "sft")
    assert gain.gap_recovered == pytest.approx(0.2)


def test_gap_recovered_of_scores_by_hand() -> None:
    def scored(method: str, seed: int, teacher: float, **scores: float) -> Any:
        names = {"accuracy": teacher, "chrf": 50.0, "ece": 0.1}
        return cell(method, 2.0, seed=seed, scores=scores, teacher_scores=names)

    study = read(
        *(scored("sft", s, 0.6, accuracy=v, chrf=30.0, ece=0.3) for s, v in enumerate((0.4, 0.3))),
        *(scored("kd", s, 0.6, accuracy=v, chrf=40.0, ece=0.2) for s, v in enumerate((0.5, 0.36))),
    )
    # means .43 - .35 = .08 of .6 - .35; by seed .1 / .2 and .06 / .3
    (accuracy,) = gains(study, "sft", "accuracy")
    assert accuracy.gap_recovered == pytest.approx(0.08 / 0.25)
    assert accuracy.gap_recovered_interval is not None
    assert accuracy.gap_recovered_interval.mean == pytest.approx((0.5 + 0.2) / 2)
    # Not between 0 and 1, better when lower, not measured on the teacher: no share is claimed.
    for metric in ("chrf", "ece"):
        assert gains(study, "sft", metric)[0].gap_recovered is None
    alone = read(*(cell(m, 2.0, scores={"accuracy": 0.5}) for m in ("sft", "kd")))
    assert gains(alone, "sft", "accuracy")[0].gap_recovered is None
    # A teacher within a point of SFT leaves nothing to recover.
    level = read(scored("sft", 0, 0.405, accuracy=0.4), scored("kd", 0, 0.405, accuracy=0.5))
    assert gains(level, "sft", "accuracy")[0].gap_recovered is None


def test_gap_recovered_is_undefined_where_the_teacher_is_no_better() -> None:
    (gain,) = gains(read(cell("sft", 1.51), cell("kd", 1.4)), "sft")
    assert (gain.gap_recovered, gain.gap_recovered_interval) == (None, None)


def test_scores_gain_when_they_rise_and_errors_when_they_fall() -> None:
    scores = {"rouge_l": 0.5, "ece": 0.1}, {"rouge_l": 0.7, "ece": 0.3}
    study = read(cell("sft", 2.0, scores=scores[0]), cell("kd", 2.0, scores=scores[1]))
    assert gains(study, "sft", "rouge_l")[0].difference.mean == pytest.approx(0.2)
    assert gains(study, "sft", "ece")[0].difference.mean == pytest.approx(-0.2)
    assert gains(study, "sft", "exact_match") == []


def test_gains_by_domain() -> None:
    kd = result_of(1.9, teacher_flops=1)
    kd["domains"] = {"code": 1.5, "math": 2.3}  # SFT at 2.0 has code 1.9 and math 2.1
    study = read(cell("sft", 2.0), row_of({"method": "kd", "size": "100"}, 0, kd))
    found = {g.domain: g.difference.mean for g in domain_gains(study, "sft")}
    assert found == pytest.approx({"code": 0.4, "math": -0.2})


def test_slope_of_the_gain_is_per_e_fold_and_seed() -> None:
    # Gains .3 at 100 rows and .1 at 1,000: slope -.2 / ln 10. Seed 1 lacks a size and is left out.
    study = read(
        cell("sft", 2.3), cell("kd", 2.0), cell("sft", 2.1, size="1000"), cell("kd", 2.0, size="1000"),
        cell("sft", 9.0, seed=1), cell("kd", 2.0, seed=1),
    )  # fmt: skip
    (slope,) = gain_slopes(study, "sft")
    assert slope.slope.mean == pytest.approx(-0.2 / math.log(10))
    assert (slope.slope.n, slope.num_sizes) == (1, 2)


def test_sft_of_one_teacher_serves_all_teachers() -> None:
    study = read(
        cell("sft", 2.0, teacher="weak", teacher_nll=1.8),
        cell("kd", 1.9, teacher="weak", teacher_nll=1.8),
        cell("kd", 1.7, teacher="strong", teacher_nll=1.5),
    )
    found = {g.arm.teacher: g for g in gains(study, "sft")}
    assert found["strong"].difference.mean == pytest.approx(0.3)
    assert found["strong"].gap_recovered == pytest.approx(0.3 / 0.5)


def test_a_baseline_that_learns_from_its_teacher_serves_that_one_only() -> None:
    study = read(cell("kd", 2.0, teacher="weak"), cell("ddk", 1.9, teacher="weak"), cell("ddk", 1.7, teacher="strong"))
    assert [g.arm.teacher for g in gains(study, "kd")] == ["weak"]


def test_teachers_are_ranked_by_their_own_nll() -> None:
    study = read(
        cell("sft", 2.0, teacher="a", teacher_nll=1.5),
        cell("kd", 1.7, teacher="a", teacher_nll=1.5),
        cell("kd", 1.9, teacher="b", teacher_nll=1.8),
    )
    (step,) = teacher_steps(study)
    assert (step.weaker, step.stronger, step.method) == ("b", "a", "kd")
    assert step.nll_step == pytest.approx(0.3)
    assert step.difference.mean == pytest.approx(0.2)


def test_ratios_are_taken_to_the_teacher_of_the_arm() -> None:
    # KD 1.6 beside teacher 1.5: e^.1. SFT 2.0 was evaluated beside 1.8, and is compared with 1.5: e^.5.
    study = read(cell("sft", 2.0, teacher="weak", teacher_nll=1.8), cell("kd", 1.6, teacher="strong", teacher_nll=1.5))
    found = {r.arm.method: r for r in ratios(study, "sft")}
    assert found["sft"].macro.mean == pytest.approx(math.exp(0.2))
    assert found["kd"].macro.mean == pytest.approx(math.exp(0.1))
    assert found["kd"].difference is not None
    assert found["kd"].difference.mean == pytest.approx(math.exp(0.5) - math.exp(0.1))
    assert set(found["kd"].domain_differences) == {"code", "math"}
    assert found["sft"].difference is None


def test_lag_is_the_largest_ratio_over_the_smallest() -> None:
    row = cell("ddk", 2.0)
    row["result"]["perplexity_ratio"] = {"code": 1.2, "math": 3.0}
    assert ratios(read(row), None)[0].largest_over_smallest == pytest.approx(2.5)


def test_without_sizes_the_methods_are_still_compared() -> None:
    rows = [
        row_of({"method": m}, 0, result_of(nll, teacher_flops=m == "ddk")) for m, nll in (("kd", 2.0), ("ddk", 1.9))
    ]
    (gain,) = gains(read(*rows), "kd")
    assert (gain.size, gain.rows) == (None, None)
    assert gain.difference.mean == pytest.approx(0.1)
    assert gain_slopes(read(*rows), "kd") == []


def test_worked_gains_of_the_whole_study() -> None:
    found = gains(read_study(sft_kd_study()), "sft")
    assert [g.difference.mean for g in found] == pytest.approx(
        [0.089199, 0.040679, 0.007394, -0.011382, -0.023491], abs=1e-6
    )
