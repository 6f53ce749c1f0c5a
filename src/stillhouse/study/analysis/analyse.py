"""Everything that a study's rows can tell, as one object that goes to ``analysis.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from stillhouse.randomness import numpy_generator
from stillhouse.study.analysis.claims import Claim, judge_claims
from stillhouse.study.analysis.cost import CostPoint, cost_points
from stillhouse.study.analysis.crossover import DRAWS, Crossover, find_crossover
from stillhouse.study.analysis.findings import cautions, find_findings
from stillhouse.study.analysis.gains import (
    DomainGain,
    Gain,
    Ratio,
    Slope,
    TeacherStep,
    domain_gains,
    gain_slopes,
    gains,
    ratios,
    teacher_steps,
    teacher_strength,
)
from stillhouse.study.analysis.intervals import Interval, t_interval
from stillhouse.study.analysis.rows import Arm, Run, Size, Study, choose_baseline, is_score, mean, read_study, values
from stillhouse.study.analysis.scaling import MIN_SIZES, PowerLaw, fit_power_law


@dataclass(frozen=True)
class Cell:
    """One arm at one size: means over seeds, and the interval of the headline.

    ``gap_closed`` is the share of the gap from the untrained student to the teacher.
    """

    arm: Arm
    size: str | None
    rows: float | None
    seeds: tuple[int, ...]
    nll: Interval
    before_nll: float | None
    teacher_nll: float | None
    gap_closed: float | None
    agreement: float | None
    teacher_entropy: float | None
    scores: dict[str, Interval]


@dataclass(frozen=True)
class Curve:
    """A learning curve: the fit of an arm's mean loss (NLL, or 1 - score) over training rows."""

    arm: Arm
    metric: str
    fit: PowerLaw


@dataclass(frozen=True)
class ArmCrossover:
    """Where an arm stops beating the baseline, on one metric; ``tokens`` is D* in training tokens."""

    arm: Arm
    metric: str
    crossover: Crossover
    tokens: float | None


@dataclass(frozen=True)
class Analysis:
    """What a study shows. ``findings[0]`` is the headline; all of it is positive where a method beats ``baseline``.

    ``unfinished`` lists every failed, running and pending run; ``counts`` the runs by status.
    """

    name: str
    axes: dict[str, list[str]]
    roles: dict[str, str | None]
    baseline: str | None
    counts: dict[str, int]
    unfinished: list[dict[str, Any]]
    sizes: list[Size]
    cells: list[Cell]
    curves: list[Curve]
    gains: list[Gain]
    score_gains: list[Gain]
    domain_gains: list[DomainGain]
    slopes: list[Slope]
    teacher_steps: list[TeacherStep]
    ratios: list[Ratio]
    crossovers: list[ArmCrossover]
    costs: list[CostPoint]
    claims: list[Claim]
    findings: list[str]
    cautions: list[str]

    @property
    def headline(self) -> str:
        """The first finding."""
        return self.findings[0]

    def to_json(self) -> dict[str, Any]:
        """The object of ``analysis.json``: the fields as they are, an arm's ``group`` as a mapping."""
        out = plain(self)
        assert isinstance(out, dict)
        return {"headline": self.headline, **out}


def analyse(
    study_result: Mapping[str, Any],
    *,
    method_axis: str | None = None,
    size_axis: str | None = None,
    teacher_axis: str | None = None,
    baseline: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    huber_delta: float | None = None,
) -> Analysis:
    """Analyse the object of ``study_result.json``; what an axis is missing for is left empty.

    The axes, and ``baseline``, the method the others are compared with, are those of the study file
    unless they are given here; without either, the axes of these names (a study's only axis is its
    method) and SFT, else CPT, else one that learns from no teacher. ``draws`` resamples drawn with ``seed`` show how sure a crossover is;
    ``huber_delta`` (in the losses' unit) makes the fits robust to an outlying size.

    Raises DataError for a damaged study and RecipeError for a baseline or an axis it lacks.
    """
    study = read_study(study_result, method_axis=method_axis, size_axis=size_axis, teacher_axis=teacher_axis)
    base = choose_baseline(study, baseline)
    nll_gains = gains(study, base) if base is not None else []
    slopes = gain_slopes(study, base) if base is not None else []
    steps = teacher_steps(study)
    crossovers = _crossovers(study, base, draws, seed, huber_delta) if base is not None else []
    claims = judge_claims(base, nll_gains, slopes, steps) if base is not None else []
    parts: dict[str, Any] = {
        "gains": nll_gains,
        "score_gains": [g for metric in study.score_names for g in gains(study, base, metric)] if base else [],
        "domain_gains": domain_gains(study, base) if base is not None else [],
        "teacher_steps": steps,
        "ratios": ratios(study, base),
        "crossovers": crossovers,
        "costs": cost_points(study),
        "claims": claims,
    }
    statuses = Counter(u["status"] for u in study.unfinished)
    curves = _curves(study, huber_delta)
    return Analysis(
        name=study.name,
        axes={axis: list(labels) for axis, labels in study.axes.items()},
        roles={"method": study.method_axis, "size": study.size_axis, "teacher": study.teacher_axis},
        baseline=base,
        counts={"done": len(study.runs), **{s: statuses[s] for s in ("failed", "running", "pending")}},
        unfinished=list(study.unfinished),
        sizes=list(study.sizes),
        cells=_cells(study),
        curves=curves,
        slopes=slopes,
        findings=find_findings(study, base, parts),
        cautions=cautions(study, nll_gains, [c.fit.at_bound for c in curves]),
        **parts,
    )


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as what JSON has."""
    if isinstance(value, Arm):
        return {"method": value.method, "teacher": value.teacher, "group": dict(value.group)}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def loss_grid(
    study: Study, cells: Mapping[str | None, Mapping[int, Run]], metric: str
) -> dict[float, dict[int, float]]:
    """Training rows to seed to loss: NLL as it is, a score as 1 - score. Of two labels with equal rows the first counts."""
    grid: dict[float, dict[int, float]] = {}
    for size in study.sizes:
        found = values(cells.get(size.label, {}), metric)
        if found and size.rows not in grid:
            grid[size.rows] = {s: 1 - v for s, v in found.items()} if is_score(metric) else found
    return grid


def _cells(study: Study) -> list[Cell]:
    rows = {size.label: size.rows for size in study.sizes}
    cells = []
    for arm, sizes in study.table.items():
        for size, runs in sizes.items():
            scores = {name: values(runs, name) for name in study.score_names}
            cells.append(
                Cell(
                    arm=arm,
                    size=size,
                    rows=rows.get(size) if size else None,
                    seeds=tuple(sorted(runs)),
                    nll=_over_seeds(values(runs, "nll")),
                    before_nll=_mean_of(runs, "before_nll"),
                    teacher_nll=teacher_strength(runs),
                    gap_closed=_mean_of(runs, "gap_closed"),
                    agreement=_mean_of(runs, "agreement"),
                    teacher_entropy=_mean_of(runs, "teacher_entropy"),
                    scores={name: _over_seeds(found) for name, found in scores.items() if found},
                )
            )
    return cells


def _curves(study: Study, huber_delta: float | None) -> list[Curve]:
    curves = []
    for metric in ("nll", *_fitted_scores(study)):
        for arm, cells in study.table.items():
            grid = loss_grid(study, cells, metric)
            if len(grid) >= MIN_SIZES:
                losses = [mean(by_seed.values()) for by_seed in grid.values()]
                curves.append(Curve(arm, metric, fit_power_law(list(grid), losses, huber_delta=huber_delta)))
    return curves


def _crossovers(study: Study, baseline: str, draws: int, seed: int, huber_delta: float | None) -> list[ArmCrossover]:
    tokens = [size.tokens / size.rows for size in study.sizes if size.tokens is not None]
    found = []
    for metric in ("nll", *_fitted_scores(study)):
        for place, (arm, cells) in enumerate(study.table.items()):
            if arm.method == baseline:
                continue
            partners = study.baseline_of(arm, baseline)
            crossover = find_crossover(
                loss_grid(study, partners, metric),
                loss_grid(study, cells, metric),
                numpy_generator(seed, f"crossover {metric}", place),
                draws=draws,
                huber_delta=huber_delta,
            )
            if crossover is not None:
                size = crossover.size
                found.append(ArmCrossover(arm, metric, crossover, size * mean(tokens) if size and tokens else None))
    return found


def _fitted_scores(study: Study) -> list[str]:
    """Scores between 0 and 1 that some run is above 0 on: a curve of constant zeros says nothing."""
    fitted = []
    for name in study.score_names:
        found = [v for run in study.runs if (v := run.value(name)) is not None]
        if is_score(name) and all(0 <= v <= 1 for v in found) and any(found):
            fitted.append(name)
    return fitted


def _over_seeds(found: Mapping[int, float]) -> Interval:
    return t_interval([found[seed] for seed in sorted(found)])


def _mean_of(runs: Mapping[int, Run], key: str) -> float | None:
    numbers = [float(v) for run in runs.values() if isinstance(v := run.result.get(key), (int, float))]
    return mean(numbers) if numbers else None
