"""Numbers and names as people read them, shared by every sentence of an analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillhouse.study.analysis.intervals import Interval
from stillhouse.study.analysis.rows import Arm

if TYPE_CHECKING:
    from stillhouse.study.analysis.gains import Gain


def number(value: float) -> str:
    """Three decimals with a true minus sign left out: ``-0.045``."""
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def rows_text(rows: float) -> str:
    """``145,000 rows``: three digits count, as no crossover is known better."""
    digits = len(str(int(rows)))
    return f"{round(rows, min(0, 3 - digits)):,.0f} rows"


def seeds_text(n: int) -> str:
    """``one seed`` or ``5 seeds``."""
    return "one seed" if n == 1 else f"{n} seeds"


def interval_text(interval: Interval, unit: str = "nats/token") -> str:
    """``0.045 nats/token (95 % interval 0.020 to 0.070 over 3 seeds)``, or that one seed has no interval."""
    centre = f"{number(interval.mean)} {unit}".strip()
    if interval.low is None or interval.high is None:
        return f"{centre} (one seed, so no interval: this may be chance)"
    over = seeds_text(interval.n) if interval.source == "seeds" else f"{interval.n} items of one seed"
    return f"{centre} ({interval.level:.0%} interval {number(interval.low)} to {number(interval.high)} over {over})".replace(
        "%", " %"
    )


def arm_name(arm: Arm) -> str:
    """``KD from teacher strong (student small)`` with the labels as the study spells them."""
    name = arm.method or "the method"
    if arm.teacher is not None:
        name += f" from teacher {arm.teacher}"
    if arm.group:
        name += f" ({', '.join(f'{axis} {label}' for axis, label in arm.group)})"
    return name


def at_size(gain: Gain) -> str:
    """``at 1,024 rows``, as exact as it was run, or nothing in a study without sizes."""
    return "" if gain.rows is None else f"at {gain.rows:,.0f} rows"
