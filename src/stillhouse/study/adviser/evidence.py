"""What the adviser knows before it advises: the measurement on the user's data, and a pilot's losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stillhouse.errors import DataError
from stillhouse.study.analysis.analyse import loss_grid
from stillhouse.study.analysis.gains import domain_values, teacher_strength
from stillhouse.study.analysis.rows import Arm, Run, Study, choose_baseline, mean

Grid = Mapping[float, Mapping[int, float]]
"""Training rows to seed to NLL."""


@dataclass(frozen=True)
class DomainMeasurement:
    """One domain's held-out content tokens: NLL, entropy and KL in nats a token, the others as shares.

    ``teacher_accuracy``: how often the teacher puts the gold token first. ``agreement``: how often both
    models put the same token first.
    """

    teacher_nll: float
    student_nll: float
    teacher_accuracy: float
    teacher_entropy: float
    agreement: float
    forward_kl: float
    content_tokens: int


@dataclass(frozen=True)
class Measurement:
    """Teacher and untrained student on the held-out rows, by domain."""

    domains: dict[str, DomainMeasurement]

    def macro(self, name: str) -> float:
        """The unweighted mean over domains of a field of ``DomainMeasurement``."""
        return mean(float(getattr(domain, name)) for domain in self.domains.values())

    def to_json(self) -> dict[str, Any]:
        """Return all numbers with their means over domains."""
        names = [name for name in DomainMeasurement.__dataclass_fields__ if name != "content_tokens"]
        return {
            "macro": {name: self.macro(name) for name in names},
            "domains": {name: asdict(domain) for name, domain in self.domains.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Rebuild what ``to_json`` gave."""
        return cls({name: DomainMeasurement(**values) for name, values in data["domains"].items()})


@dataclass(frozen=True)
class Evidence:
    """All that ``recommend`` looks at.

    ``baseline_losses`` and ``method_losses`` hold the pilot's NLL; empty without a pilot.
    ``method_ratios`` and ``baseline_ratios`` are the perplexity ratios to the teacher at the largest
    size, by domain and seed. ``full_rows`` is the size that the advice is for.
    """

    baseline: str
    method: str
    full_rows: float
    baseline_losses: Grid = field(default_factory=dict)
    method_losses: Grid = field(default_factory=dict)
    teacher_nll: float | None = None
    method_ratios: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    baseline_ratios: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    measurement: Measurement | None = None
    unfinished: Sequence[Mapping[str, Any]] = ()
    assumptions: Sequence[str] = ()

    @property
    def sizes(self) -> list[float]:
        """Sizes that both methods have a common seed at, ascending."""
        both = self.baseline_losses.keys() & self.method_losses.keys()
        return sorted(d for d in both if self.baseline_losses[d].keys() & self.method_losses[d].keys())

    @property
    def seeds(self) -> list[int]:
        """Seeds that both methods have at every one of ``sizes``."""
        found: set[int] | None = None
        for size in self.sizes:
            here = self.baseline_losses[size].keys() & self.method_losses[size].keys()
            found = set(here) if found is None else found & here
        return sorted(found or ())


def evidence_from_study(
    study: Study,
    *,
    full_rows: float,
    arm: Arm | None = None,
    baseline: str | None = None,
    up_to_rows: float | None = None,
    measurement: Measurement | None = None,
    assumptions: Sequence[str] = (),
) -> Evidence:
    """Take the evidence for one arm out of a study, the sizes above ``up_to_rows`` left out.

    ``arm`` None: the first that is not the baseline's. Raises DataError when the study has no two
    methods to compare.
    """
    base = choose_baseline(study, baseline)
    arms = [a for a in study.table if a.method != base]
    if base is None or not arms:
        raise DataError(f"study {study.name!r}: it has no two methods with finished runs, so there is nothing to go by")
    chosen = arm or arms[0]
    cells, partners = study.table[chosen], study.baseline_of(chosen, base)
    kept = {s.label: s.rows for s in study.sizes if up_to_rows is None or s.rows <= up_to_rows}
    largest = max(kept, key=lambda label: kept[label], default=None)
    runs: Mapping[int, Run] = cells.get(largest, {})
    ratios = domain_values(runs, "perplexity_ratio")
    teacher = teacher_strength(runs)
    return Evidence(
        baseline=base,
        method=str(chosen.method),
        full_rows=full_rows,
        baseline_losses=_up_to(loss_grid(study, partners, "nll"), up_to_rows),
        method_losses=_up_to(loss_grid(study, cells, "nll"), up_to_rows),
        teacher_nll=measurement.macro("teacher_nll") if teacher is None and measurement is not None else teacher,
        method_ratios=ratios,
        baseline_ratios=domain_values(partners.get(largest, {}), "perplexity_ratio"),
        measurement=measurement,
        unfinished=study.unfinished,
        assumptions=assumptions,
    )


def _up_to(grid: dict[float, dict[int, float]], rows: float | None) -> dict[float, dict[int, float]]:
    return {size: by_seed for size, by_seed in grid.items() if rows is None or size <= rows}
