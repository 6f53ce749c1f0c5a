"""A study's headline in one plain sentence, and how its verdicts are put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.report.findings import Headline
from stillhouse.report.study_arms import Arms, key_of
from stillhouse.report.text import clip, count, enumeration

Json = Mapping[str, Any]
MAX_ARMS = 2

CLAIMS = {
    "wins_with_little_data": "Distillation wins with little data",
    "gain_fades": "Its gain fades with more data",
    "stronger_teacher_restores": "A stronger teacher restores it",
}
VERDICTS = {"agrees": "agrees", "disagrees": "does not agree", "cannot_tell": "cannot tell"}


def study_headline(analysis: Json, arms: Arms) -> Headline:
    """Say where a method beat the baseline and where nobody can tell; every claim rests on intervals.

    Only the sign of a 95 % interval counts: a mean above zero whose interval crosses it is not a win.
    """
    total = sum(analysis["counts"].values())
    missing = total - analysis["counts"]["done"]
    details = [clip(analysis["findings"][0], 600)]
    if missing:
        details.append(f"{count(missing)} of {count(total)} runs are missing or failed, so this may still change.")
    return Headline(_title(analysis, arms), tuple(details))


def signs(gains: Sequence[Json]) -> list[int]:
    """1 where the interval of a gain lies above zero, -1 below, 0 where it cannot tell."""
    return [_sign(gain["difference"]) for gain in gains]


def _title(analysis: Json, arms: Arms) -> str:
    if not analysis["counts"]["done"]:
        return "No run of this study has finished yet."
    gains = analysis["gains"]
    if not gains:
        return "This study has nothing to compare yet."
    baseline = arms.baseline_name
    if all(gain["difference"]["low"] is None for gain in gains):
        ahead = sum(gain["difference"]["mean"] > 0 for gain in gains)
        return f"Ahead of {baseline} in {ahead} of {len(gains)} comparisons, with one seed each: this may be chance."
    by_arm: dict[str, list[Json]] = {}
    for gain in gains:
        by_arm.setdefault(arms.name(gain["arm"]), []).append(gain)
    if len(by_arm) > MAX_ARMS:
        return _ends(gains, baseline) or _count(gains, baseline)
    same: dict[str, list[str]] = {}
    for name, found in by_arm.items():
        same.setdefault(_clause(found, baseline), []).append(name)
    return "; ".join(f"{enumeration(names)} {clause}" for clause, names in same.items()) + "."


def _clause(gains: Sequence[Json], baseline: str) -> str:
    """What one arm did over its sizes, few rows first."""
    ordered = sorted(gains, key=lambda gain: gain["rows"] or 0.0)
    found = signs(ordered)
    if len(set(found)) == 1:
        everywhere = " at every data size" if len(found) > 1 else ""
        return {
            1: f"beat {baseline}{everywhere}",
            -1: f"did worse than {baseline}{everywhere}",
            0: f"could not be told apart from {baseline}{' at any data size' if len(found) > 1 else ''}",
        }[found[0]]
    wins = next((i for i, sign in enumerate(found) if sign != 1), len(found))
    if wins and not any(sign == 1 for sign in found[wins:]):
        rest = "and did worse beyond" if all(sign == -1 for sign in found[wins:]) else "and not clearly beyond"
        return f"beat {baseline} up to {count(ordered[wins - 1]['rows'])} rows {rest}"
    parts = [f"beat {baseline} at {found.count(1)}"] if 1 in found else []
    parts += [f"did worse than {baseline} at {found.count(-1)}"] if -1 in found else []
    parts += [f"could not be told apart from {baseline} at {found.count(0)}"] if 0 in found else []
    return f"{enumeration(parts)} of {len(found)} data sizes"


def _ends(gains: Sequence[Json], baseline: str) -> str | None:
    """What becomes of many arms from the least data to the most; None without sizes."""
    sizes = sorted({gain["rows"] for gain in gains if gain["rows"] is not None})
    if len(sizes) < 2:
        return None
    few, many = (signs([gain for gain in gains if gain["rows"] == size]) for size in (sizes[0], sizes[-1]))
    worse = f", and {many.count(-1)} did worse" if -1 in many else ""
    return (
        f"With {count(sizes[0])} rows {few.count(1)} of {len(few)} alternatives beat {baseline}; "
        f"with {count(sizes[-1])} rows {many.count(1)} of {len(many)} did{worse}."
    )


def _count(gains: Sequence[Json], baseline: str) -> str:
    found = signs(gains)
    return (
        f"Of {len(found)} comparisons with {baseline}, {found.count(1)} were clearly better, "
        f"{found.count(-1)} clearly worse, and {found.count(0)} could not be told apart."
    )


def _sign(difference: Json) -> int:
    low, high = difference["low"], difference["high"]
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def claims(analysis: Json, arms: Arms) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """Each claim with its verdicts: the arm, the verdict in words, its name for styling, and the sentence."""
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    for claim in analysis["claims"]:
        verdict = (_claimant(claim, arms), VERDICTS[claim["verdict"]], claim["verdict"], claim["sentence"])
        found.setdefault(CLAIMS[claim["claim"]], []).append(verdict)
    return list(found.items())


def _claimant(claim: Json, arms: Arms) -> str:
    """The third claim is about a method, whatever its teacher."""
    method, _, group = key_of(claim["arm"])
    if claim["claim"] != "stronger_teacher_restores":
        return arms.name(claim["arm"])
    return ", ".join([str(method), *(f"{axis} {label}" for axis, label in group)])
