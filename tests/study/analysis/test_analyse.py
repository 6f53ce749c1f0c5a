from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_rows import kd, result_of, row_of, sft, sft_kd_study, study_of

from stillhouse.errors import RecipeError
from stillhouse.study.analysis import analyse


def verdicts(study: dict[str, Any]) -> dict[str, str]:
    return {claim.claim: claim.verdict for claim in analyse(study, draws=20).claims}


def test_the_worked_study() -> None:
    analysis = analyse(sft_kd_study(), draws=50)
    assert analysis.baseline == "sft"
    fits = {c.arm.method: c.fit for c in analysis.curves}
    assert (fits["sft"].floor, fits["sft"].amplitude, fits["sft"].alpha) == pytest.approx((1.80, 8, 0.35), rel=1e-6)
    assert (fits["kd"].floor, fits["kd"].amplitude, fits["kd"].alpha) == pytest.approx((1.84, 3, 0.30), rel=1e-6)
    (crossover,) = analysis.crossovers
    assert crossover.crossover.size == pytest.approx(145_418, abs=1)
    assert crossover.tokens == pytest.approx(145_418 * 50, rel=1e-4)
    assert analysis.headline.startswith("kd beats sft at 10,000 rows by 0.089 nats/token")
    assert any("ends at about 145,000 rows" in sentence for sentence in analysis.findings)


def test_json_is_plain_and_complete() -> None:
    found = json.loads(json.dumps(analyse(sft_kd_study(noise=0.01), draws=20).to_json(), allow_nan=False))
    assert found["headline"] == found["findings"][0]
    assert found["gains"][0]["arm"] == {"method": "kd", "teacher": None, "group": {}}
    assert found["counts"] == {"done": 30, "failed": 0, "running": 0, "pending": 0}
    assert {c["size"] for c in found["cells"]} == {f"{d:.0f}" for d in (1e4, 3e4, 1e5, 3e5, 9.39e5)}


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31))
def test_order_of_rows_does_not_matter(shuffle: int) -> None:
    study = sft_kd_study(noise=0.02, pair_noise=0.01)
    mixed = {**study, "rows": random.Random(shuffle).sample(study["rows"], len(study["rows"]))}
    assert analyse(mixed, draws=20).to_json() == analyse(study, draws=20).to_json()


def test_claims_where_the_gain_fades() -> None:
    found = verdicts(sft_kd_study(noise=0.05, pair_noise=0.001))
    assert found == {
        "wins_with_little_data": "agrees",
        "gain_fades": "agrees",
        "stronger_teacher_restores": "cannot_tell",  # one teacher only
    }


def test_claims_where_distillation_hurts_more_and_more() -> None:
    curves = {"sft": sft, "kd": lambda d: sft(d) + 0.1}
    found = verdicts(sft_kd_study(curves=curves, pair_noise=0.001))
    assert found["wins_with_little_data"] == "disagrees"
    assert found["gain_fades"] == "cannot_tell"  # nothing to fade


def test_claims_where_the_gain_grows() -> None:
    found = verdicts(
        sft_kd_study(curves={"sft": lambda d: sft(d) + d * 1e-7, "kd": lambda d: sft(d) - 0.01}, pair_noise=0.0001)
    )
    assert found["wins_with_little_data"] == "agrees"
    assert found["gain_fades"] == "disagrees"


def test_noise_or_one_seed_cannot_tell() -> None:
    assert set(verdicts(sft_kd_study(pair_noise=1.0)).values()) == {"cannot_tell"}
    assert set(verdicts(sft_kd_study(seeds=1)).values()) == {"cannot_tell"}


def two_teachers(strong_gain: float) -> dict[str, Any]:
    rows = []
    for seed in range(3):
        for size in (100, 1000):
            base, jitter = 2.0 + 0.1 * seed, 0.001 * seed
            for method, teacher, nll in (
                ("sft", "weak", base),
                ("kd", "weak", base - (0.1 if size == 100 else -0.1)),
                ("kd", "strong", base - strong_gain + jitter),
            ):
                labels = {"method": method, "size": str(size), "teacher": teacher}
                teacher_nll = 1.5 if teacher == "strong" else 1.8
                flops = 20 if method == "kd" else 0
                rows.append(
                    row_of(labels, seed, result_of(nll, rows=size, teacher_nll=teacher_nll, teacher_flops=flops))
                )
    return study_of(rows)


@pytest.mark.parametrize(("strong_gain", "verdict"), [(0.2, "agrees"), (-0.2, "disagrees"), (0.001, "cannot_tell")])
def test_claim_of_the_stronger_teacher(strong_gain: float, verdict: str) -> None:
    assert verdicts(two_teachers(strong_gain))["stronger_teacher_restores"] == verdict


def test_the_headline_of_many_arms_is_the_best_clear_one() -> None:
    nll = {"sft": 2.0, "slightly": 1.9, "by luck": 1.5, "most": 1.7, "worse": 2.2}
    rows = [
        row_of({"method": method}, seed, result_of(value + (seed if method == "by luck" else 0.001 * seed)))
        for method, value in nll.items()
        for seed in range(3)
    ]
    study = {**study_of(rows), "baseline": "sft"}
    findings = analyse(study, draws=20).findings
    assert [sentence.split()[0] for sentence in findings[:4]] == ["most", "slightly", "by", "worse"]


def test_failed_runs_are_counted_and_named() -> None:
    study = sft_kd_study()
    study["rows"][1].update(status="failed", result=None, error="out of memory")
    analysis = analyse(study, draws=20)
    assert analysis.counts["failed"] == 1
    assert analysis.unfinished[0]["error"] == "out of memory"
    assert "1 of 30 runs failed: kd/10000 seed 0." in analysis.cautions
    assert any("have no partner of the same seed" in note for note in analysis.cautions)


def test_students_far_from_their_teacher_are_no_evidence() -> None:
    rows = [row_of({"method": m}, 0, result_of(3.2, teacher_flops=m == "kd")) for m in ("sft", "kd")]
    notes = analyse(study_of(rows)).cautions
    assert any("no evidence" in note and "sft (1.700)" in note for note in notes)


def test_size_labels_beyond_the_data_are_pointed_out() -> None:
    rows = [row_of({"method": "sft", "size": label}, 0, result_of(2.0, rows=80)) for label in ("100", "200")]
    assert "Sizes 100 and 200 both trained on 80 rows: the data has no more." in analyse(study_of(rows)).cautions


def test_one_method_still_has_its_curve_and_cost() -> None:
    study = sft_kd_study(curves={"sft": sft})
    analysis = analyse(study)
    assert (analysis.baseline, analysis.gains, analysis.crossovers) == (None, [], [])
    assert analysis.curves[0].fit.alpha == pytest.approx(0.35)
    assert len(analysis.costs) == 5
    assert analysis.headline.startswith("The study has only sft finished")


def test_nothing_finished_yet() -> None:
    study = study_of([row_of({"method": "sft"}, 0, None, "pending")])
    assert analyse(study).headline == "No run has finished, so there is nothing to compare yet."


def test_methods_without_common_seeds_cannot_be_compared() -> None:
    rows = [row_of({"method": "sft"}, 0, result_of(2.0)), row_of({"method": "kd"}, 1, result_of(1.9, teacher_flops=1))]
    assert "nothing can be compared" in analyse(study_of(rows)).headline


def test_scores_are_fitted_as_errors() -> None:
    def with_score(row: dict[str, Any]) -> dict[str, Any]:
        row = copy.deepcopy(row)
        size = row["result"]["train_rows"]
        curve = sft if row["labels"]["method"] == "sft" else kd
        row["result"]["scores"] = {"accuracy": 2.5 - curve(size), "chrf": 40.0}
        return row

    study = sft_kd_study(seeds=1)
    analysis = analyse({**study, "rows": [with_score(r) for r in study["rows"]]}, draws=20)
    fits = {(c.arm.method, c.metric): c.fit for c in analysis.curves}
    assert fits["sft", "accuracy"].alpha == pytest.approx(0.35, rel=1e-4)  # 1 - score = L - 1.5
    assert ("sft", "chrf") not in fits  # not between 0 and 1
    by_metric = {c.metric: c.crossover.size for c in analysis.crossovers}
    assert by_metric["accuracy"] == pytest.approx(145_418, rel=1e-4)
    assert any(s.startswith("accuracy: kd is better than sft in 0") for s in analysis.findings)


def test_another_axis_makes_groups_of_its_own() -> None:
    rows = [
        row_of({"method": m, "student": s}, seed, result_of(nll + 0.01 * seed, teacher_flops=m == "kd"))
        for seed in range(2)
        for m, s, nll in (("sft", "small", 3.0), ("kd", "small", 2.5), ("sft", "big", 2.0), ("kd", "big", 2.2))
    ]
    analysis = analyse(study_of(rows))
    found = {dict(g.arm.group)["student"]: g.difference.mean for g in analysis.gains}
    assert found == pytest.approx({"small": 0.5, "big": -0.2})
    assert "kd (student small)" in analysis.findings[0]


def test_the_axes_may_have_other_names() -> None:
    rows = [row_of({"arm": m}, 0, result_of(nll)) for m, nll in (("kd", 2.0), ("ddk", 1.9))]
    analysis = analyse(study_of(rows), method_axis="arm", baseline="kd")
    assert analysis.gains[0].difference.mean == pytest.approx(0.1)


def test_the_study_file_names_axes_and_baseline() -> None:
    rows = [
        row_of({"arm": arm, "rank": rank}, 0, result_of(nll))
        for arm, nll in (("plain", 2.0), ("tuned", 1.9))
        for rank in ("8", "16")
    ]
    nameless = analyse(study_of(rows))
    assert (nameless.gains, nameless.baseline) == ([], None)
    assert nameless.headline.startswith(
        "No axis (arm, rank) is named as the method, so nothing is compared; set roles.method. The lowest NLL is 1.900"
    )
    named = {**study_of(rows), "roles": {"method": "arm"}, "baseline": "tuned"}
    analysis = analyse(named)
    assert analysis.roles == {"method": "arm", "size": None, "teacher": None}
    assert analysis.baseline == "tuned"
    assert [g.difference.mean for g in analysis.gains] == pytest.approx([-0.1, -0.1])
    assert analyse(named, baseline="plain").baseline == "plain"
    with pytest.raises(RecipeError, match=r"roles.size=ran: there is no such axis. Did you mean 'rank'"):
        analyse(named, size_axis="ran")


def test_the_only_axis_is_the_method() -> None:
    rows = [row_of({"objective": m}, 0, result_of(nll)) for m, nll in (("sft", 2.0), ("kd", 1.9))]
    analysis = analyse(study_of(rows))
    assert (analysis.roles["method"], analysis.baseline, len(analysis.gains)) == ("objective", "sft", 1)


def test_the_share_of_a_score_s_gap_is_said() -> None:
    scores = {"sft": 0.4, "kd": 0.5}
    rows = [
        row_of({"method": m}, 0, result_of(2.0, scores={"accuracy": v}, teacher_scores={"accuracy": 0.6}))
        for m, v in scores.items()
    ]
    analysis = analyse(study_of(rows))
    assert analysis.score_gains[0].gap_recovered == pytest.approx(0.5)
    assert any("the share of the gap to the teacher that it recovers is 0.500." in s for s in analysis.findings)
