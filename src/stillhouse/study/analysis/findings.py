"""The analysis in plain sentences, with the numbers and their uncertainty in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.study.analysis.cost import CostPoint
from stillhouse.study.analysis.gains import DomainGain, Gain, Ratio, teacher_strength
from stillhouse.study.analysis.rows import Arm, Study, mean, values
from stillhouse.study.analysis.wording import arm_name, at_size, interval_text, number, rows_text, seeds_text

if TYPE_CHECKING:
    from stillhouse.study.analysis.analyse import ArmCrossover

NO_EVIDENCE_NATS = 1.5
"""A student this far above its teacher is still gibberish; comparing methods there shows nothing."""
FEW_SEEDS = 3


def find_findings(study: Study, baseline: str | None, parts: Mapping[str, Any]) -> list[str]:
    """Every finding, the headline first. ``parts`` are the lists of the analysis by their field names."""
    if not study.runs:
        return ["No run has finished, so there is nothing to compare yet."]
    if baseline is None:
        return [_one_method(study)]
    by_arm: dict[Arm, list[Gain]] = {}
    for gain in parts["gains"]:
        by_arm.setdefault(gain.arm, []).append(gain)
    if not by_arm:
        return [f"No run of another method has a finished partner under {baseline}, so nothing can be compared yet."]
    findings = [_gain_sentence(arm, baseline, found) for arm, found in _in_order(by_arm)]
    findings += [claim.sentence for claim in parts["claims"]]
    findings += [_crossover_sentence(c, baseline) for c in parts["crossovers"] if c.metric == "nll"]
    findings += _score_sentences(parts["score_gains"], baseline)
    findings += _domain_sentences(parts["domain_gains"], parts["gains"])
    findings += _ratio_sentences(parts["ratios"], parts["gains"], baseline)
    return [*findings, *_cost_sentences(parts["costs"], baseline)]


def _in_order(by_arm: Mapping[Arm, list[Gain]]) -> list[tuple[Arm, list[Gain]]]:
    """At one size a clear win comes first, then the largest mean gain; with sizes the order is the study's own."""
    arms = list(by_arm.items())
    if any(len(gains) > 1 for _, gains in arms):
        return arms
    return sorted(arms, key=lambda item: (-item[1][0].difference.sign, -item[1][0].difference.mean))


def cautions(study: Study, gains: Sequence[Gain], bounds: Sequence[bool]) -> list[str]:
    """What weakens the study, gravest first; ``bounds`` says of each fitted curve whether it hit a bound."""
    notes = []
    for status, words in (("failed", "failed"), ("running", "are still running"), ("pending", "have not been run")):
        found = [u for u in study.unfinished if u["status"] == status]
        if found:
            names = "; ".join(f"{'/'.join(u['labels'].values())} seed {u['seed']}" for u in found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            notes.append(f"{len(found)} of {len(study.runs) + len(study.unfinished)} runs {words}: {names}{more}.")
    notes += _far_from_teacher(study)
    alone = sum(gain.seeds_without_partner for gain in gains)
    if alone:
        notes.append(f"{alone} finished runs have no partner of the same seed and were left out of the differences.")
    labels: dict[float, list[str]] = {}
    for size in study.sizes:
        labels.setdefault(size.rows, []).append(size.label)
    for rows, twins in labels.items():
        if len(twins) > 1:
            notes.append(f"Sizes {' and '.join(twins)} both trained on {rows_text(rows)}: the data has no more.")
    fewest = min((gain.difference.n for gain in gains), default=FEW_SEEDS)
    if fewest < FEW_SEEDS:
        notes.append(f"Some differences rest on {seeds_text(fewest)}; run at least {FEW_SEEDS}, better 5.")
    if any(bounds):
        notes.append(
            f"{sum(bounds)} of {len(bounds)} fitted curves ended at a bound of their range: do not extrapolate them."
        )
    if len(gains) > 1:
        notes.append(
            f"{len(gains)} differences were tested, each at 95 %: about one in twenty would exclude zero by chance."
        )
    return notes


def _far_from_teacher(study: Study) -> list[str]:
    far = []
    for arm, cells in study.table.items():
        for size, runs in cells.items():
            teacher, nll = teacher_strength(runs), mean(values(runs, "nll").values())
            if teacher is not None and nll - teacher > NO_EVIDENCE_NATS:
                far.append(f"{arm_name(arm)}{f' at size {size}' if size else ''} ({number(nll - teacher)})")
    if not far:
        return []
    listed = "; ".join(far[:5]) + (f" and {len(far) - 5} more" if len(far) > 5 else "")
    return [
        f"Students more than {NO_EVIDENCE_NATS} nats/token above their teacher are no evidence about methods: {listed}."
    ]


def _one_method(study: Study) -> str:
    best = min(
        (
            (mean(values(runs, "nll").values()), arm, size)
            for arm, sizes in study.table.items()
            for size, runs in sizes.items()
        ),
        key=lambda item: item[0],
    )
    where = f" at size {best[2]}" if best[2] else ""
    lowest = f"lowest NLL is {number(best[0])} nats/token, from {arm_name(best[1])}{where}."
    if study.method_axis is not None:
        return f"The study has only {study.methods[0]} finished, so methods cannot be compared; its {lowest}"
    if not study.axes:
        return f"The study has no axes, so there is nothing to compare; its {lowest}"
    axes = ", ".join(study.axes)
    return f"No axis ({axes}) is named as the method, so nothing is compared; set roles.method. The {lowest}"


def _gain_sentence(arm: Arm, baseline: str, gains: Sequence[Gain]) -> str:
    name, first, last = arm_name(arm), gains[0], gains[-1]
    if len(gains) == 1:
        return f"{_verdict(name, baseline, first)}."
    return f"{_verdict(name, baseline, first)}; {_verdict('it', baseline, last)}."


def _verdict(name: str, baseline: str, gain: Gain) -> str:
    """``KD beats SFT at 64 rows by 0.045 nats/token (...)``."""
    place = f" {at_size(gain)}" if at_size(gain) else ""
    difference = gain.difference
    if difference.sign == 1:
        return f"{name} beats {baseline}{place} by {interval_text(difference)}"
    if difference.sign == -1:
        return f"{name} loses to {baseline}{place}: its gain is {interval_text(difference)}"
    if difference.n == 1:
        word = "ahead of" if difference.mean > 0 else "behind"
        return (
            f"{name} is {word} {baseline}{place} in the one seed that was run: its gain is {interval_text(difference)}"
        )
    return f"{name} cannot be told apart from {baseline}{place}: its gain is {interval_text(difference)}"


def _crossover_sentence(found: ArmCrossover, baseline: str) -> str:
    cross, name = found.crossover, arm_name(found.arm)
    how = "fitted curves" if cross.how == "fit" else "the straight line between the sizes that were run"
    none = cross.fraction_without_root
    unsure = f"{none:.0%} of resampled seeds show no crossing".replace("%", " %") if none is not None else "one seed"
    if cross.size is None:
        text = {
            "method_ahead": f"{name} stays ahead of {baseline}",
            "baseline_ahead": f"{name} stays behind {baseline}",
            "reverse": f"{name} starts behind {baseline} and ends ahead of it",
            "level": f"{name} and {baseline} are level",
        }[cross.status]
        low, high = cross.searched
        return f"{text} on {how} from {rows_text(low)} to {rows_text(high)}: no crossover ({unsure})."
    spread = ""
    if cross.quantiles is not None:
        low, _, high = cross.quantiles
        spread = f"{cross.interval_kind} over resampled seeds {rows_text(low)} to {rows_text(high)}, "
    beyond = ". This lies outside the sizes that were run: an extrapolation" if cross.extrapolated else ""
    return f"On {how} the advantage of {name} over {baseline} ends at about {rows_text(cross.size)} ({spread}{unsure}){beyond}."


def _score_sentences(gains: Sequence[Gain], baseline: str) -> list[str]:
    sentences = []
    for arm, metric in dict.fromkeys((g.arm, g.metric) for g in gains):
        own = [g for g in gains if (g.arm, g.metric) == (arm, metric)]
        signs = [g.difference.sign for g in own]
        text = (
            f"{metric}: {arm_name(arm)} is better than {baseline} in {signs.count(1)}, worse in {signs.count(-1)} and "
            f"not to be told apart in {signs.count(0)} of {len(signs)} cells"
        )
        shares = [g.gap_recovered for g in own if g.gap_recovered is not None]
        if shares:
            text += f"; the share of the gap to the teacher that it recovers is {_range_text(shares)}"
        sentences.append(f"{text}.")
    return sentences


def _range_text(numbers: Sequence[float]) -> str:
    low, high = number(min(numbers)), number(max(numbers))
    return low if low == high else f"{low} to {high}"


def _domain_sentences(domains: Sequence[DomainGain], gains: Sequence[Gain]) -> list[str]:
    """By domain at each arm's smallest size, where a method's gain is expected to be largest."""
    sentences = []
    smallest = {gain.arm: gain for gain in reversed(gains)}
    for arm, gain in smallest.items():
        here = sorted((d for d in domains if d.arm == arm and d.size == gain.size), key=lambda d: -d.difference.mean)
        if len(here) < 2:
            continue
        place = f" {at_size(gain)}" if at_size(gain) else ""
        sentences.append(
            f"By domain{place}, {arm_name(arm)} gains most in {here[0].domain}, {interval_text(here[0].difference)}, and "
            f"least in {here[-1].domain}, {interval_text(here[-1].difference)}."
        )
    return sentences[::-1]


def _ratio_sentences(ratios: Sequence[Ratio], gains: Sequence[Gain], baseline: str) -> list[str]:
    """The mean perplexity ratio to the teacher at each arm's largest size."""
    largest = {gain.arm: gain for gain in gains}
    sentences = []
    for ratio in ratios:
        gain = largest.get(ratio.arm)
        if gain is None or gain.size != ratio.size or ratio.difference is None:
            continue
        place = f" {at_size(gain)}" if at_size(gain) else ""
        sentences.append(
            f"The perplexity of {arm_name(ratio.arm)}{place} is {number(ratio.macro.mean)} times its teacher's (mean over "
            f"domains); the ratio of {baseline} less this one is {interval_text(ratio.difference, '')}."
        )
    return sentences


def _cost_sentences(costs: Sequence[CostPoint], baseline: str) -> list[str]:
    """How many times the baseline's FLOPs each method costs, on the same cells."""
    price = {(c.arm, c.size): c.flops for c in costs}
    factors: dict[str, list[float]] = {}
    for cost in costs:
        partners = [
            flops
            for (arm, size), flops in price.items()
            if arm.method == baseline and arm.group == cost.arm.group and size == cost.size and flops
        ]
        if cost.arm.method not in (baseline, None) and cost.flops and partners:
            factors.setdefault(str(cost.arm.method), []).append(cost.flops / partners[0])
    return [f"A run of {method} costs {mean(f):.2f} times the FLOPs of {baseline}'s." for method, f in factors.items()]
