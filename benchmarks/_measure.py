"""What every measurement shares: token rows, peak memory, child processes, spreads.

Peak memory belongs to a process, so each contestant runs in a process of its own and prints one
JSON object as its last line. This module imports no torch, so a peer with another environment may use it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BATCHES_FILE = "batches.json"
TEACHER_FOLDER = "teacher"
STUDENT_FOLDER = "student"


@dataclass(frozen=True)
class TokenRow:
    """One conversation: token ids, and per token whether it is a target."""

    input_ids: list[int]
    loss_mask: list[bool]


RowBatch = list[TokenRow]


@dataclass(frozen=True)
class Job:
    """What one child measures. ``work`` holds the model folders and the batches that all children share."""

    contestant: str
    dtype: str
    work: Path
    warmup: int
    chunk: int

    def arguments(self) -> list[str]:
        """The command-line form that ``job_from_arguments`` reads."""
        return ["--job", json.dumps({**asdict(self), "work": str(self.work)})]


def job_from_arguments(arguments: Sequence[str]) -> Job | None:
    """Return the job when the command line is ``--job JSON``, else None."""
    if len(arguments) != 2 or arguments[0] != "--job":
        return None
    fields = json.loads(arguments[1])
    return Job(**{**fields, "work": Path(fields["work"])})


@dataclass
class StepClock:
    """Times the steps of one contestant; the first ``warmup`` of them are not counted."""

    warmup: int
    seconds: list[float] = field(default_factory=list)
    _last: float = 0.0

    def start(self) -> None:
        """Begin the first step."""
        self._last = time.perf_counter()

    def step_done(self) -> None:
        """End one step and begin the next; what lies between two calls (data loading too) counts."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    def result(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Tokens per second over the counted steps, and this process's peak memory so far.

        ``tokens[i]`` is the number of real tokens of step i.
        """
        assert len(tokens) == len(self.seconds) > self.warmup
        counted = self.seconds[self.warmup :]
        return {
            "tokens_per_second": sum(tokens[self.warmup :]) / sum(counted),
            "step_seconds": [round(value, 4) for value in counted],
            "peak_rss_gib": peak_rss_bytes() / 2**30,
        }


@dataclass(frozen=True)
class Spread:
    """Mean and range over the repeats."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(sum(values) / len(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """``mean (low..high)`` with so many digits after the point."""
        return f"{self.mean:.{digits}f} ({self.low:.{digits}f}..{self.high:.{digits}f})"


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process.

    Linux's ``VmHWM`` starts anew with the program, where ``ru_maxrss`` may carry the parent's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def num_tokens(batch: RowBatch) -> int:
    """Real tokens of a batch, prompts included and padding not."""
    return sum(len(row.input_ids) for row in batch)


def write_batches(batches: Sequence[RowBatch], work: Path) -> None:
    """Store the batches that every contestant reads."""
    rows = [[[row.input_ids, [int(flag) for flag in row.loss_mask]] for row in batch] for batch in batches]
    (work / BATCHES_FILE).write_text(json.dumps(rows), "utf-8")


def read_batches(work: Path) -> list[RowBatch]:
    """Return what ``write_batches`` stored."""
    stored = json.loads((work / BATCHES_FILE).read_text("utf-8"))
    return [[TokenRow(ids, [bool(flag) for flag in mask]) for ids, mask in batch] for batch in stored]


def run_child(python: str, script: Path, job: Job) -> dict[str, Any]:
    """Run one contestant in its own process and return the JSON object of its last line.

    Raises SystemExit with the child's last lines when it fails.
    """
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, str(script), *job.arguments()], capture_output=True, text=True, check=False, env=environment
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{job.contestant} ({job.dtype}) failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result
