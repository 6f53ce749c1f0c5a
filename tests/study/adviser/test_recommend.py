from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from stillhouse.study.adviser.evidence import DomainMeasurement, Evidence, Measurement
from stillhouse.study.adviser.recommend import (
    choose,
    lagging_domains,
    recommend,
    synthetic_data_would_help,
    teacher_is_strong_enough,
)

Curve = Callable[[float], float]
SIZES = (100.0, 300.0, 900.0)


def pilot(
    base: Curve, method: Curve, *, full: float = 5000, seeds: int = 3, teacher: float | None = 1.5, jitter: float = 1e-4
) -> Evidence:
    return Evidence(
        "sft",
        "kd",
        full,
        {d: {s: base(d) + jitter * s for s in range(seeds)} for d in SIZES},
        {d: {s: method(d) for s in range(seeds)} for d in SIZES},
        teacher_nll=teacher,
    )


def measured(teacher: float, student: float, domains: tuple[str, ...] = ("code", "math")) -> Measurement:
    values = {
        "teacher_accuracy": 0.5,
        "teacher_entropy": 1.0,
        "agreement": 0.4,
        "forward_kl": 0.3,
        "content_tokens": 500,
    }
    return Measurement({d: DomainMeasurement(teacher_nll=teacher, student_nll=student, **values) for d in domains})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base", "method", "verdict"),
    [
        (lambda _: 2.0, lambda _: 1.9, "method"),
        (lambda _: 2.0, lambda _: 2.1, "baseline"),
        (lambda _: 2.0, lambda _: 2.0, "either"),
        # A gain of .10 that shrinks by .05 each time: it may be gone at 5,000 rows, or stay.
        (lambda d: 2.1 - 0.05 * math.log(d / 100) / math.log(3), lambda _: 2.0 - 0.01, "cannot_tell"),
    ],
)
def test_choice(base: Curve, method: Curve, verdict: str) -> None:
    answer = choose(pilot(base, method))
    assert answer.verdict == verdict
    assert answer.prediction is not None


def test_noise_one_seed_distance_or_gibberish_cannot_choose() -> None:
    assert choose(pilot(lambda _: 2.0, lambda _: 1.9, jitter=0.3)).verdict == "cannot_tell"
    one = choose(pilot(lambda _: 2.0, lambda _: 1.9, seeds=1))
    assert (one.verdict, "only one seed" in one.sentence) == ("cannot_tell", True)
    far = choose(pilot(lambda _: 2.0, lambda _: 1.9, full=50_000))
    assert (far.verdict, "56 times the largest pilot" in far.sentence) == ("cannot_tell", True)
    gibberish = choose(pilot(lambda _: 4.0, lambda _: 3.5))
    assert (gibberish.verdict, "no evidence" in gibberish.sentence) == ("cannot_tell", True)
    empty = choose(Evidence("sft", "kd", 5000))
    assert (empty.verdict, empty.prediction) == ("cannot_tell", None)


@pytest.mark.parametrize(
    ("teacher", "verdict"), [(1.5, "yes"), (2.3, "no"), (1.95, "cannot_tell"), (None, "cannot_tell")]
)
def test_teacher_against_what_sft_will_reach(teacher: float | None, verdict: str) -> None:
    # SFT falls by .05 each time the data triples: .05 * log3(5000 / 900) = .078 below its 2.0 at 900, at most.
    base: Curve = lambda d: 2.0 + 0.05 * math.log(900 / d) / math.log(3)  # noqa: E731
    assert teacher_is_strong_enough(pilot(base, base, teacher=teacher)).verdict == verdict


def test_a_teacher_worse_than_the_untrained_student_is_too_weak() -> None:
    evidence = Evidence("sft", "kd", 5000, measurement=measured(3.0, 2.5))
    answer = teacher_is_strong_enough(evidence)
    assert (answer.verdict, "Fine-tune the teacher" in answer.sentence) == ("no", True)
    assert synthetic_data_would_help(evidence, choose(evidence), answer).verdict == "no"


def test_without_a_pilot_a_better_teacher_is_not_enough_to_know() -> None:
    answer = teacher_is_strong_enough(Evidence("sft", "kd", 5000, measurement=measured(2.0, 2.5)))
    assert (answer.verdict, "without a pilot" in answer.sentence) == ("cannot_tell", True)


@pytest.mark.parametrize(
    ("drop", "teacher", "verdict"),
    # ``drop``: nats for each tripling; doubling is worth drop * ln 2 / ln 3, at most, and at least 1/sqrt(5000/900) of it.
    [(0.2, 0.8, "yes"), (0.01, 0.8, "no"), (0.06, 0.8, "cannot_tell"), (0.2, 2.5, "no")],
)
def test_synthetic_data(drop: float, teacher: float, verdict: str) -> None:
    base: Curve = lambda d: 2.0 + drop * math.log(900 / d) / math.log(3)  # noqa: E731
    evidence = pilot(base, base, teacher=teacher, jitter=1e-5)
    answer = synthetic_data_would_help(evidence, choose(evidence), teacher_is_strong_enough(evidence))
    assert answer.verdict == verdict


def test_lagging_domains_of_the_pilot() -> None:
    ratios = {"code": {0: 3.0, 1: 3.1, 2: 3.05}, "math": {0: 1.2, 1: 1.3, 2: 1.25}, "chat": {0: 1.1, 1: 1.2, 2: 1.1}}
    answer = lagging_domains(Evidence("sft", "kd", 5000, method_ratios=ratios))
    assert (answer.verdict, answer.lagging) == ("yes", ["code"])
    assert list(answer.ratios) == ["code", "math", "chat"]
    # Eq. 1: e^3.05 : e^1.25 : e^1.1333
    total = math.exp(3.05) + math.exp(1.25) + math.exp(3.4 / 3)
    assert answer.ddk_weights["code"] == pytest.approx(math.exp(3.05) / total)


def test_lagging_domains_fall_back_to_the_untrained_student_and_say_so() -> None:
    domains = measured(2.0, 2.1).domains | measured(2.0, 2.9, ("law",)).domains
    answer = lagging_domains(Evidence("sft", "kd", 5000, measurement=Measurement(domains)))
    assert answer.ratios["law"].mean == pytest.approx(math.exp(0.9))
    assert "untrained student" in answer.sentence
    assert answer.lagging == []  # one measurement has no spread
    assert answer.verdict == "yes"  # e^.9 / e^.1 = 2.23


def test_gibberish_says_nothing_about_domains() -> None:
    ratios = {"code": {0: 9000.0}, "math": {0: 1500.0}}
    answer = lagging_domains(Evidence("sft", "kd", 5000, method_ratios=ratios))
    assert (answer.verdict, answer.lagging) == ("cannot_tell", [])
    assert "no evidence" in answer.sentence


def test_domains_that_lag_alike() -> None:
    even = {"code": {0: 1.5}, "math": {0: 1.6}}
    assert lagging_domains(Evidence("sft", "kd", 5000, method_ratios=even)).verdict == "no"
    between = {"code": {0: 1.5}, "math": {0: 2.0}}
    assert lagging_domains(Evidence("sft", "kd", 5000, method_ratios=between)).verdict == "cannot_tell"
    assert lagging_domains(Evidence("sft", "kd", 5000, method_ratios={"code": {0: 2.0}})).verdict == "cannot_tell"


def test_whole_advice_is_json_and_says_what_it_lacks() -> None:
    evidence = pilot(lambda _: 2.0, lambda _: 1.9, seeds=2)
    evidence = Evidence(**{**vars(evidence), "unfinished": [{"status": "failed"}], "assumptions": ["one stage"]})
    advice = recommend(evidence)
    found = json.loads(json.dumps(advice.to_json(), allow_nan=False))
    assert found["choice"]["verdict"] == "method"
    assert found["sentences"][0].startswith("Use kd: the predicted gain of kd over sft at 5,000 rows is 0.100")
    assert found["assumptions"] == ["one stage"]
    notes = " ".join(advice.cannot_tell)
    for words in ("1 pilot runs are missing (1 failed)", "has 2 seeds", "With 3 sizes", "task scores"):
        assert words in notes
    assert "No crossover is expected from 100 rows to 900 rows: kd stays ahead" in advice.crossover_sentence


def test_advice_without_a_pilot() -> None:
    advice = recommend(Evidence("sft", "kd", 5000, measurement=measured(2.0, 2.5)))
    verdicts = (advice.choice.verdict, advice.teacher.verdict, advice.synthetic.verdict)
    assert verdicts == ("cannot_tell",) * 3
    assert advice.crossover is None
    assert "without a pilot" in advice.crossover_sentence


def test_crossover_of_the_pilot() -> None:
    # Gains +.1, 0.05, -.05: the straight line crosses half way (in log) between 300 and 900.
    gains = dict(zip(SIZES, (0.1, 0.05, -0.05), strict=True))
    advice = recommend(pilot(lambda d: 2.0 + gains[d], lambda _: 2.0, jitter=0.0))
    assert advice.crossover is not None
    assert advice.crossover.size == pytest.approx(math.sqrt(300 * 900))
    assert "kd is expected to pay up to about 520 rows, range 520 rows to 520 rows" in advice.crossover_sentence
