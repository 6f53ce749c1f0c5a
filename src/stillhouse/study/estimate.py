"""How long runs take: measured on those that finished, else guessed by the preflight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.study.grid import Cell, Plan
from stillhouse.study.state import RunState

MAX_PREFLIGHTS = 4
"""A preflight reads and tokenizes the data, so a large grid is guessed from so many of its runs."""


@dataclass(frozen=True)
class Durations:
    """Seconds of some runs, from which those of the others follow.

    A run takes as long as the mean of the known runs that agree with it in the most labels.
    """

    cells: Mapping[str, Cell]
    known: Mapping[str, float]
    measured: bool
    """False: the preflight's guess, of the training alone."""

    @classmethod
    def of_finished(cls, plan: Plan, states: Mapping[str, RunState]) -> Durations:
        """From the runs whose end was seen."""
        known = {name: state.seconds for name, state in states.items() if state.status == "done" and state.seconds > 0}
        return cls({name: run.cell for name, run in plan.runs.items()}, known, True)

    def __bool__(self) -> bool:
        return bool(self.known)

    def seconds(self, name: str) -> float | None:
        """The expected wall time of a run; None when nothing is known."""
        if name in self.known:
            return self.known[name]
        if not self.known:
            return None
        labels = self.cells[name].labels
        shared = {
            other: sum(labels.get(axis) == label for axis, label in self.cells[other].labels.items())
            for other in self.known
        }
        nearest = [self.known[other] for other, count in shared.items() if count == max(shared.values())]
        return sum(nearest) / len(nearest)

    def total(self, names: Sequence[str]) -> float | None:
        """The expected wall time of several runs, one after the other."""
        found = [self.seconds(name) for name in names]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if len(known) == len(found) else None


def preflight_durations(plan: Plan, names: Sequence[str], *, base_dir: Path) -> Durations:
    """Guess the runs' training times from their data and the models' configurations.

    Looks at one seed of each combination of labels, and at no more than ``MAX_PREFLIGHTS`` evenly spread
    ones. Raises the StillhouseError of the preflight for a run that could not start.
    """
    from stillhouse.preflight.check import preflight

    seed = plan.runs[names[0]].cell.seed
    first = [name for name in names if plan.runs[name].cell.seed == seed]
    count = min(MAX_PREFLIGHTS, len(first))
    chosen = [first[i * (len(first) - 1) // max(1, count - 1)] for i in range(count)]
    known = {}
    for name in chosen:
        run = plan.runs[name]
        try:
            known[name] = preflight(run.recipe, base_dir=base_dir).estimate.seconds
        except StillhouseError as error:
            raise type(error)(f"{run.cell.describe()}: {error}") from error
    return Durations({name: run.cell for name, run in plan.runs.items()}, known, False)
