"""What a person sees while a stage runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from stillhouse.evaluation.nll import NLLReport
from stillhouse.training.step import StepOutcome

_PLAIN_SECONDS = 15.0


class Progress(Protocol):
    def step(self, step: int, total: int, outcome: StepOutcome, tokens_per_second: float) -> None: ...

    def evaluation(self, step: int, report: NLLReport, *, improved: bool) -> None: ...

    def close(self) -> None: ...


def open_progress(console: Console | None, name: str, first_step: int) -> Progress:
    """A live bar where the console is a terminal, plain lines where it is not, nothing without one."""
    if console is None:
        return Silent()
    return Live(console, name, first_step) if console.is_terminal else Plain(console, name)


class Silent:
    """Ranks other than the first, and library use without a console."""

    def step(self, step: int, total: int, outcome: StepOutcome, tokens_per_second: float) -> None: ...

    def evaluation(self, step: int, report: NLLReport, *, improved: bool) -> None: ...

    def close(self) -> None: ...


class Plain:
    """A line every fifteen seconds, and one per evaluation."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._started = time.monotonic()
        self._first: int | None = None
        self._last_line = 0.0

    def step(self, step: int, total: int, outcome: StepOutcome, tokens_per_second: float) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = step - 1
        if now - self._last_line < _PLAIN_SECONDS and step != total:
            return
        self._last_line = now
        left = (now - self._started) / (step - self._first) * (total - step)
        self._print(f"step {step}/{total}  {_losses(outcome)}  {tokens_per_second:.0f} tok/s  {_clock(left)} left")

    def evaluation(self, step: int, report: NLLReport, *, improved: bool) -> None:
        self._print(_evaluation_line(step, report, improved))

    def close(self) -> None:
        sys.stdout.flush()

    def _print(self, text: str) -> None:
        self._console.print(f"[{self._name}] {text}", markup=False, highlight=False, soft_wrap=True)


class Live:
    """A bar with losses, speed and the time left; evaluations scroll above it."""

    def __init__(self, console: Console, name: str, first_step: int) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(name, completed=first_step, total=None, numbers="")
        self._bar.start()

    def step(self, step: int, total: int, outcome: StepOutcome, tokens_per_second: float) -> None:
        numbers = f"{_losses(outcome)}  {tokens_per_second:.0f} tok/s"
        self._bar.update(self._task, completed=step, total=total, numbers=numbers)

    def evaluation(self, step: int, report: NLLReport, *, improved: bool) -> None:
        self._bar.console.print(_evaluation_line(step, report, improved), markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def _losses(outcome: StepOutcome) -> str:
    text = f"loss {outcome.loss:.3f}  ce {outcome.ce:.3f}"
    return text if outcome.kd is None else f"{text}  kd {outcome.kd:.3f}"


def _evaluation_line(step: int, report: NLLReport, improved: bool) -> str:
    best = "  (best so far)" if improved and step > 0 else ""
    domains = "  ".join(f"{name} {domain.nll:.3f}" for name, domain in report.domains.items())
    return f"step {step}: validation NLL {report.nll:.4f} nats/token{best}  [{domains}]"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
