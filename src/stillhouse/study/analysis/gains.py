"""What a method gains over the baseline: by size, by domain, by the teacher's strength, and against the teacher.

Every gain is positive where the method is better, and is a mean of per-seed differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from stillhouse.evaluation.gap import gap_recovered
from stillhouse.study.analysis.intervals import Interval, paired_interval, t_interval
from stillhouse.study.analysis.rows import Arm, Run, Study, is_score, mean, values

MIN_GAP_NATS = 0.02
"""A smaller gap between teacher and baseline is noise, and a share of it means nothing."""

_MAX_LOG_RATIO = 700.0
"""Beyond this the ratio overflows; rows of a study leave such a domain out as well."""


@dataclass(frozen=True)
class Gain:
    """One method against the baseline in one cell, paired by seed.

    ``difference`` is in nats a token, or in the score's own unit; ``seeds_without_partner`` were
    left out because the other method's run is missing. ``gap_recovered`` is the difference over what
    the teacher is better than the baseline, for NLL and scores between 0 and 1; None where that is too little
    to divide by, or the teacher was not measured.
    """

    arm: Arm
    size: str | None
    rows: float | None
    metric: str
    difference: Interval
    seeds_without_partner: int
    teacher_nll: float | None
    gap_recovered: float | None
    gap_recovered_interval: Interval | None


@dataclass(frozen=True)
class DomainGain:
    """One domain's NLL gain in nats a token."""

    arm: Arm
    size: str | None
    domain: str
    difference: Interval


@dataclass(frozen=True)
class Slope:
    """How a method's gain moves with the data: d gain / d ln D per seed, in nats a token per e-fold.

    Negative: the gain fades. ``gains`` lists the sizes' gains from few rows to many.
    """

    arm: Arm
    slope: Interval
    num_sizes: int


@dataclass(frozen=True)
class TeacherStep:
    """What a stronger teacher changes for one method at one size, paired by seed.

    ``difference`` is NLL under ``weaker`` less NLL under ``stronger`` (positive: the stronger one helps);
    ``nll_step`` is how much better the stronger teacher itself is.
    """

    method: str | None
    group: tuple[tuple[str, str], ...]
    size: str | None
    weaker: str
    stronger: str
    nll_step: float
    difference: Interval


@dataclass(frozen=True)
class Ratio:
    """Perplexity of the student over the teacher's, in one cell.

    ``macro`` is the mean over domains, paired against the baseline in ``difference`` (positive: the
    method is nearer to the teacher), each domain's likewise.
    """

    arm: Arm
    size: str | None
    macro: Interval
    domains: dict[str, Interval]
    difference: Interval | None
    domain_differences: dict[str, Interval]
    largest_over_smallest: float


def gains(study: Study, baseline: str, metric: str = "nll") -> list[Gain]:
    """Every cell of every other method beside the baseline's, on one metric."""
    rows = {size.label: size.rows for size in study.sizes}
    found = []
    for arm, size, runs, partners in _pairs(study, baseline):
        own, base = values(runs, metric), values(partners, metric)
        difference = paired_interval(own, base) if is_score(metric) else paired_interval(base, own)
        if difference is None:
            continue
        recovered, interval = _gap_recovered(runs, partners, metric)
        found.append(
            Gain(
                arm=arm,
                size=size,
                rows=rows.get(size) if size else None,
                metric=metric,
                difference=difference,
                seeds_without_partner=len(own.keys() ^ base.keys()),
                teacher_nll=teacher_strength(runs),
                gap_recovered=recovered,
                gap_recovered_interval=interval,
            )
        )
    return found


def domain_gains(study: Study, baseline: str) -> list[DomainGain]:
    """NLL gains by domain, for the domains that both methods were scored on."""
    found = []
    for arm, size, runs, partners in _pairs(study, baseline):
        own, base = domain_values(runs, "domains"), domain_values(partners, "domains")
        for domain in own:
            difference = paired_interval(base.get(domain, {}), own[domain])
            if difference is not None:
                found.append(DomainGain(arm, size, domain, difference))
    return found


def gain_slopes(study: Study, baseline: str) -> list[Slope]:
    """For each arm with two sizes or more, the slope of its NLL gain against ln(rows), one per complete seed."""
    rows = {size.label: size.rows for size in study.sizes}
    by_arm: dict[Arm, dict[int, list[tuple[float, float]]]] = {}
    for arm, size, runs, partners in _pairs(study, baseline):
        if size not in rows:
            continue
        own, base = values(runs, "nll"), values(partners, "nll")
        for seed in own.keys() & base.keys():
            point = (math.log(rows[size]), base[seed] - own[seed])
            by_arm.setdefault(arm, {}).setdefault(seed, []).append(point)
    found = []
    for arm, seeds in by_arm.items():
        most = max(len({x for x, _ in points}) for points in seeds.values())
        if most >= 2:
            # A seed that lacks a size would put its own mixture of sizes into the mean.
            whole = [seeds[seed] for seed in sorted(seeds) if len({x for x, _ in seeds[seed]}) == most]
            found.append(Slope(arm, t_interval([line_slope(points) for points in whole]), most))
    return found


def teacher_steps(study: Study) -> list[TeacherStep]:
    """Every pair of teachers that a method was run with at one size, told apart by their own NLL there."""
    if study.teacher_axis is None:
        return []
    ladders: dict[tuple[str | None, tuple[tuple[str, str], ...]], list[Arm]] = {}
    for arm in study.table:
        if study.uses_teacher(arm.method):
            ladders.setdefault((arm.method, arm.group), []).append(arm)
    found = []
    for (method, group), arms in ladders.items():
        for size in _size_order(study):
            known = [(teacher_strength(study.table[a].get(size, {})), a) for a in arms if size in study.table[a]]
            ranked = sorted(((s, str(a.teacher), a) for s, a in known if s is not None), key=lambda item: item[:2])
            for (strong, _, better), (weak, _, worse) in combinations(ranked, 2):
                difference = paired_interval(
                    values(study.table[worse][size], "nll"), values(study.table[better][size], "nll")
                )
                if difference is not None:
                    names = str(worse.teacher), str(better.teacher)
                    found.append(TeacherStep(method, group, size, *names, weak - strong, difference))
    return found


def ratios(study: Study, baseline: str | None) -> list[Ratio]:
    """Perplexity ratios to the teacher in every cell that has a teacher's NLL, the baseline's cells included."""
    found = []
    for arm, cells in study.table.items():
        partners = study.baseline_of(arm, baseline) if baseline is not None and arm.method != baseline else {}
        for size, runs in cells.items():
            own = domain_values(runs, "perplexity_ratio")
            macro = values(runs, "perplexity_ratio")
            if not macro:
                continue
            base_macro, base_domains = _ratios_to(runs, partners.get(size, {}))
            pairs = {d: paired_interval(base_domains.get(d, {}), own[d]) for d in own}
            means = {domain: t_interval(list(by_seed.values())) for domain, by_seed in own.items()}
            centres = [interval.mean for interval in means.values()]
            found.append(
                Ratio(
                    arm=arm,
                    size=size,
                    macro=t_interval([macro[seed] for seed in sorted(macro)]),
                    domains=means,
                    difference=paired_interval(base_macro, macro),
                    domain_differences={d: i for d, i in pairs.items() if i is not None},
                    largest_over_smallest=max(centres) / min(centres),
                )
            )
    return found


def teacher_strength(runs: Mapping[int, Run]) -> float | None:
    """Mean NLL of the teacher over the runs, in nats a token; lower is stronger."""
    known = [run.result.get("teacher_nll") for run in runs.values()]
    numbers = [float(v) for v in known if v is not None]
    return mean(numbers) if numbers else None


def domain_values(runs: Mapping[int, Run], key: str) -> dict[str, dict[int, float]]:
    """``domains`` or ``perplexity_ratio`` of every run, as domain to seed to value."""
    found: dict[str, dict[int, float]] = {}
    for seed, run in sorted(runs.items()):
        for domain, value in (run.result.get(key) or {}).items():
            found.setdefault(domain, {})[seed] = float(value)
    return found


def line_slope(points: list[tuple[float, float]]) -> float:
    """Least-squares slope of y over x for at least two different x."""
    x_mean, y_mean = mean(x for x, _ in points), mean(y for _, y in points)
    spread = math.fsum((x - x_mean) ** 2 for x, _ in points)
    return math.fsum((x - x_mean) * (y - y_mean) for x, y in points) / spread


def _pairs(study: Study, baseline: str) -> Iterator[tuple[Arm, str | None, Mapping[int, Run], Mapping[int, Run]]]:
    """Every cell that has a partner: arm, size, its runs by seed, the baseline's."""
    order = _size_order(study)
    for arm, cells in study.table.items():
        if arm.method == baseline:
            continue
        partners = study.baseline_of(arm, baseline)
        for size in order:
            if size in cells and size in partners:
                yield arm, size, cells[size], partners[size]


def _ratios_to(
    runs: Mapping[int, Run], partners: Mapping[int, Run]
) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """The partners' perplexity ratios to the teacher of ``runs``: theirs may be evaluated beside another one."""
    macro: dict[int, float] = {}
    domains: dict[str, dict[int, float]] = {}
    for seed in sorted(runs.keys() & partners.keys()):
        teacher, student = runs[seed].result.get("teacher_domains") or {}, partners[seed].result.get("domains") or {}
        gaps = {d: student[d] - teacher[d] for d in student if d in teacher}
        found = {d: math.exp(gap) for d, gap in gaps.items() if gap < _MAX_LOG_RATIO}
        for domain, ratio in found.items():
            domains.setdefault(domain, {})[seed] = ratio
        if found:
            macro[seed] = mean(found.values())
    return macro, domains


def _size_order(study: Study) -> list[str | None]:
    """Size labels from few rows to many; a study without sizes has the one size None."""
    return [size.label for size in study.sizes] or [None]


def _gap_recovered(
    runs: Mapping[int, Run], partners: Mapping[int, Run], metric: str
) -> tuple[float | None, Interval | None]:
    """(KD - SFT) / (teacher - SFT): the ratio of the means, and Student-t over the seeds' own ratios.

    Known for NLL, and for scores between 0 and 1; over the seeds whose teacher was measured as well.
    """
    own, base = values(runs, metric), values(partners, metric)
    teacher = {seed: value for seed, run in runs.items() if (value := run.teacher_value(metric)) is not None}
    seeds = sorted(own.keys() & base.keys() & teacher.keys())
    triples = [(own[seed], base[seed], teacher[seed]) for seed in seeds]
    if not triples:
        return None, None
    if metric == "nll":
        share = _nll_recovered
    elif is_score(metric) and all(0 <= value <= 1 for triple in triples for value in triple):
        share = gap_recovered
    else:
        return None, None
    total = share(*(mean(column) for column in zip(*triples, strict=True)))
    each = [found for triple in triples if (found := share(*triple)) is not None]
    return total, t_interval(each) if total is not None and len(each) == len(triples) else None


def _nll_recovered(distilled: float, fine_tuned: float, teacher: float) -> float | None:
    """The share for losses in nats a token, where less is better."""
    room = fine_tuned - teacher
    return None if abs(room) < MIN_GAP_NATS else (fine_tuned - distilled) / room
