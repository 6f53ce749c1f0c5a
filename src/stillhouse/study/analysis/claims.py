"""Three claims about distillation, each answered by the study itself: agrees, does not, or cannot tell.

They are those of the post-training study by Xin Liu et al. (2026, arXiv 2606.22942): distillation wins
with little data; its gain fades with more; a stronger teacher restores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.study.analysis.gains import Gain, Slope, TeacherStep
from stillhouse.study.analysis.rows import Arm
from stillhouse.study.analysis.wording import arm_name, at_size, interval_text, number, seeds_text

Verdict = Literal["agrees", "disagrees", "cannot_tell"]
ClaimName = Literal["wins_with_little_data", "gain_fades", "stronger_teacher_restores"]


@dataclass(frozen=True)
class Claim:
    """One claim for one arm, with a sentence that carries the numbers."""

    claim: ClaimName
    arm: Arm
    verdict: Verdict
    sentence: str


def judge_claims(
    baseline: str, gains: Sequence[Gain], slopes: Sequence[Slope], steps: Sequence[TeacherStep]
) -> list[Claim]:
    """Judge all three for every arm; a verdict other than ``cannot_tell`` needs an interval without zero.

    ``gains`` are NLL gains in ascending order of size within an arm.
    """
    by_arm: dict[Arm, list[Gain]] = {}
    for gain in gains:
        by_arm.setdefault(gain.arm, []).append(gain)
    claims = []
    for arm, sizes in by_arm.items():
        slope = next((s for s in slopes if s.arm == arm), None)
        claims.append(_little_data(arm, baseline, sizes))
        claims.append(_fades(arm, baseline, sizes, slope))
    for key in dict.fromkeys((arm.method, arm.group) for arm in by_arm):
        arms = {arm: sizes for arm, sizes in by_arm.items() if (arm.method, arm.group) == key}
        claims.append(_restores(baseline, arms, steps))
    return claims


def _little_data(arm: Arm, baseline: str, sizes: Sequence[Gain]) -> Claim:
    name = arm_name(arm)
    if len(sizes) < 2:
        return Claim(
            "wins_with_little_data",
            arm,
            "cannot_tell",
            f"Whether {name} wins with little data cannot be told: only one data size was run.",
        )
    first = sizes[0]
    numbers = f"its gain over {baseline} {at_size(first)} is {interval_text(first.difference)}"
    verdict, text = {
        1: ("agrees", f"{name} wins with little data, as the paper says: {numbers}."),
        -1: ("disagrees", f"{name} does not win with little data, against the paper's claim: {numbers}."),
        0: ("cannot_tell", f"Whether {name} wins with little data cannot be told: {numbers}."),
    }[first.difference.sign]
    return Claim("wins_with_little_data", arm, verdict, text)  # type: ignore[arg-type]


def _fades(arm: Arm, baseline: str, sizes: Sequence[Gain], slope: Slope | None) -> Claim:
    name = arm_name(arm)
    if slope is None:
        text = f"Whether the gain of {name} fades with more data cannot be told: only one data size was run."
        return Claim("gain_fades", arm, "cannot_tell", text)
    numbers = f"its gain over {baseline} changes with each e-fold more of data by {interval_text(slope.slope)}"
    if sizes[0].difference.mean <= 0:
        text = f"There is no gain of {name} with little data that could fade: {numbers}."
        return Claim("gain_fades", arm, "cannot_tell", text)
    verdict, text = {
        -1: ("agrees", f"The gain of {name} fades with more data, as the paper says: {numbers}."),
        1: ("disagrees", f"The gain of {name} grows with more data, against the paper's claim: {numbers}."),
        0: ("cannot_tell", f"Whether the gain of {name} fades with more data cannot be told: {numbers}."),
    }[slope.slope.sign]
    return Claim("gain_fades", arm, verdict, text)  # type: ignore[arg-type]


def _restores(baseline: str, arms: dict[Arm, list[Gain]], steps: Sequence[TeacherStep]) -> Claim:
    """At the largest size: does the strongest teacher help more than the weakest, and is there a gain with it?"""
    any_arm = next(iter(arms))
    sizes = [gain for found in arms.values() for gain in found]
    largest = max(sizes, key=lambda gain: gain.rows or 0.0)
    pairs = [s for s in steps if (s.method, s.group, s.size) == (any_arm.method, any_arm.group, largest.size)]
    if not pairs:
        text = f"Whether a stronger teacher restores the gain of {any_arm.method} cannot be told: only one was tried."
        return Claim("stronger_teacher_restores", any_arm, "cannot_tell", text)
    step = max(pairs, key=lambda pair: pair.nll_step)
    arm = Arm(any_arm.method, step.stronger, any_arm.group)
    gain = next((g for g in arms.get(arm, []) if g.size == step.size), None)
    numbers = (
        f"{at_size(largest)} the student of teacher {step.stronger}, itself {number(step.nll_step)} nats/token better than "
        f"teacher {step.weaker}, is better than the other's by {interval_text(step.difference)}"
    )
    if gain is None:
        return Claim(
            "stronger_teacher_restores",
            arm,
            "cannot_tell",
            f"Whether a stronger teacher restores the gain of {arm.method} cannot be told: {numbers}, and "
            f"{baseline} beside it is missing.",
        )
    numbers += f", and its gain over {baseline} there is {interval_text(gain.difference)}"
    if step.difference.sign == 1 and gain.difference.sign == 1:
        text = f"A stronger teacher restores the gain of {arm.method}, as the paper says: {numbers}."
        return Claim("stronger_teacher_restores", arm, "agrees", text)
    if step.difference.sign == -1 or gain.difference.sign == -1:
        text = f"A stronger teacher does not restore the gain of {arm.method}, against the paper's claim: {numbers}."
        return Claim("stronger_teacher_restores", arm, "disagrees", text)
    text = f"Whether a stronger teacher restores the gain of {arm.method} cannot be told: {numbers}."
    if gain.difference.n == 1:
        text += f" There is only {seeds_text(1)}."
    return Claim("stronger_teacher_restores", arm, "cannot_tell", text)
