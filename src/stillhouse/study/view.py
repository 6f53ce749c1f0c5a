"""What a person sees of a study: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stillhouse.study.estimate import Durations
from stillhouse.study.grid import Plan, held_out_notes
from stillhouse.study.state import RunState

_LINE_SECONDS = 60.0
_TAIL_BYTES = 8192
_FAILURES_SHOWN = 5


@dataclass(frozen=True)
class Status:
    """A moment of a study."""

    folder: Path
    states: Mapping[str, RunState]
    durations: Durations
    jobs: int

    def names(self, status: str) -> list[str]:
        return [name for name, state in self.states.items() if state.status == status]


class View(Protocol):
    """What the runner tells."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def announce(self, plan: Plan, states: Mapping[str, RunState], durations: Durations) -> None: ...

    def say(self, text: str) -> None: ...

    def started(self, name: str) -> None: ...

    def ended(self, name: str, state: RunState, nll: float | None) -> None: ...

    def show(self, status: Status) -> None: ...


class PlainView:
    """A line for each run that starts or ends, and one a minute between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._starts: dict[str, float] = {}
        self._last = time.monotonic()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def announce(self, plan: Plan, states: Mapping[str, RunState], durations: Durations) -> None:
        """Counts, expected time, and what is odd about the comparison."""
        for line in announcement(plan, states, durations):
            self.say(line)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, name: str) -> None:
        self._starts[name] = time.monotonic()
        self.say(f"start   {name}")

    def ended(self, name: str, state: RunState, nll: float | None) -> None:
        took = time.monotonic() - self._starts.pop(name)
        if state.status == "done":
            self.say(f"done    {name}: NLL {nll:.4f} in {duration(took)}")
        elif state.status == "failed":
            self.say(f"failed  {name}: {state.error}")
        elif state.error is None:
            self.say(f"stopped {name}")

    def show(self, status: Status) -> None:
        if time.monotonic() - self._last < _LINE_SECONDS:
            return
        self._last = time.monotonic()
        running = [f"{name} {describe_progress(status.folder / name)}".rstrip() for name in status.names("running")]
        self.say("; ".join([summary(status, self._starts), *running]))


class LiveView(PlainView):
    """A table that redraws itself; runs that ended scroll above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=2)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, name: str) -> None:
        self._starts[name] = time.monotonic()

    def show(self, status: Status) -> None:
        table = Table(title=summary(status, self._starts), title_justify="left", expand=True)
        for column in ("run", "state", "progress", "time", "left"):
            table.add_column(column, justify="right" if column in ("time", "left") else "left", no_wrap=True)
        now = time.monotonic()
        for name in status.names("running"):
            spent = now - self._starts.get(name, now)
            expected = status.durations.seconds(name) if status.durations.measured else None
            left = "" if expected is None else duration(max(0.0, expected - spent))
            progress = describe_progress(status.folder / name)
            table.add_row(Text(name), "running", Text(progress), duration(spent), left)
        for name in status.names("failed")[-_FAILURES_SHOWN:]:
            reason = (status.states[name].error or "").partition("\n")[0]
            table.add_row(Text(name), Text("failed", style="red"), Text(reason, overflow="ellipsis"), "", "")
        self._live.update(table)


def open_view(console: Console) -> View:
    """A live table where the console is a terminal, plain lines where it is not."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def announcement(plan: Plan, states: Mapping[str, RunState], durations: Durations) -> list[str]:
    """What a study is about to do, a line a fact."""
    names = {status: [n for n, s in states.items() if s.status == status] for status in ("done", "failed", "pending")}
    shared = len(plan.cells) - len({cell.run for cell in plan.cells})
    lines = [
        f"{plan.config.name}: {len(plan.cells)} cells"
        + (f", {shared} of them share a run with another" if shared else "")
        + f"; {len(names['done'])} runs done, {len(names['failed'])} failed, {len(names['pending'])} to do"
    ]
    if names["pending"]:
        lines.append(_expected(names["pending"], durations, plan.config.jobs))
    for name in names["failed"]:
        lines.append(f"failed before, and left alone without --retry-failed: {name}: {states[name].error}")
    return lines + [f"note: {note}" for note in held_out_notes(plan)]


def _expected(pending: list[str], durations: Durations, jobs: int) -> str:
    total = durations.total(pending)
    if total is None:
        return f"{len(pending)} runs, and no measure yet of how long they take"
    kind = "measured on finished runs" if durations.measured else "estimated, training alone"
    each, together = duration(total / len(pending)), duration(total / jobs)
    return f"{len(pending)} runs x {each} ({kind}), {jobs} at a time: about {together}"


def summary(status: Status, starts: Mapping[str, float]) -> str:
    """``12 done, 2 running, 1 failed, 9 left, about 14 min``."""
    counts = {kind: status.names(kind) for kind in ("done", "running", "failed", "pending")}
    text = (
        f"{len(counts['done'])} done, {len(counts['running'])} running, {len(counts['failed'])} failed, "
        f"{len(counts['pending'])} left"
    )
    open_runs = [*counts["running"], *counts["pending"]]
    total = status.durations.total(open_runs) if status.durations.measured else None
    if total is None or not open_runs:
        return text
    now = time.monotonic()
    spent = sum(min(now - starts.get(name, now), status.durations.seconds(name) or 0.0) for name in counts["running"])
    return f"{text}, about {duration((total - spent) / status.jobs)} to go"


def describe_progress(run: Path) -> str:
    """Stage, step and loss from the end of a run's metrics; empty before its first step."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:  # cut at the start of the window, or still being written
            continue
        if event.get("event") == "step":
            loss = event["loss"]
            return f"{event['stage']} step {event['step']}" + ("" if loss is None else f", loss {loss:.3f}")
    return ""


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
