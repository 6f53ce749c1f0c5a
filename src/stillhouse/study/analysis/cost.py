"""What quality cost: FLOPs, wall time and the teacher's share of them, and which arms nobody beats at their price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.study.analysis.intervals import Interval, t_interval
from stillhouse.study.analysis.rows import Arm, Run, Study, mean, values


@dataclass(frozen=True)
class CostPoint:
    """One cell: mean cost over seeds beside its NLL. FLOPs and seconds are those of one run.

    ``flops`` counts ``preparation`` (the teacher's pass for a cache or for written answers) as if every run
    had paid for its own, though a study shares it; ``teacher_share`` is the teacher's part of ``flops``.
    ``on_flops_front`` and ``on_seconds_front``: no other cell of the study is both cheaper (or as cheap)
    and better (or as good); None where the cost was not recorded.
    """

    arm: Arm
    size: str | None
    nll: Interval
    flops: float | None
    preparation: float | None
    teacher_share: float | None
    seconds: float | None
    tokens_per_second: float | None
    on_flops_front: bool | None = None
    on_seconds_front: bool | None = None


def cost_points(study: Study) -> list[CostPoint]:
    """Cost and quality of every cell, with the two Pareto fronts of the whole study marked."""
    points = []
    for arm, cells in study.table.items():
        for size, runs in cells.items():
            nll = values(runs, "nll")
            listed = [runs[seed] for seed in sorted(runs)]
            total, teacher = _mean_of(listed, "flops", "total"), _mean_of(listed, "flops", "teacher")
            prepared = _mean_of(listed, "flops", "preparation")
            flops = None if total is None else total + (prepared or 0.0)
            points.append(
                CostPoint(
                    arm=arm,
                    size=size,
                    nll=t_interval([nll[seed] for seed in sorted(nll)]),
                    flops=flops,
                    preparation=prepared,
                    teacher_share=(teacher + (prepared or 0.0)) / flops if flops and teacher is not None else None,
                    seconds=_mean_of(listed, "seconds"),
                    tokens_per_second=_mean_of(listed, "tokens_per_second"),
                )
            )
    by_flops = pareto_front([(p.flops, p.nll.mean) for p in points])
    by_seconds = pareto_front([(p.seconds, p.nll.mean) for p in points])
    return [
        CostPoint(**{**vars(point), "on_flops_front": f, "on_seconds_front": s})
        for point, f, s in zip(points, by_flops, by_seconds, strict=True)
    ]


def pareto_front(points: Sequence[tuple[float | None, float]]) -> list[bool | None]:
    """For each (cost, loss), True where no other point is at most as high in both and lower in one.

    Points without a cost get None and beat nobody.
    """
    known = [(cost, loss) for cost, loss in points if cost is not None]

    def beaten(cost: float, loss: float) -> bool:
        return any(c <= cost and other <= loss and (c, other) != (cost, loss) for c, other in known)

    return [None if cost is None else not beaten(cost, loss) for cost, loss in points]


def _mean_of(runs: Sequence[Run], *path: str) -> float | None:
    """Mean of a nested number of the runs that have it."""
    numbers = []
    for run in runs:
        value: Any = run.result
        for key in path:
            value = (value or {}).get(key)
        if value is not None:
            numbers.append(float(value))
    return mean(numbers) if numbers else None
