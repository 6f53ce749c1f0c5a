"""Run Python that a model wrote, with as little as the machine lets us take away from it.

A child interpreter (``-I -S``: no environment, no site packages) in a temporary folder, with hard
limits on processor time, memory, processes (none), open files and their size; killed when the time
is over. Root hands it to a user without rights. Where Linux lets a user make namespaces, it has no
network, and :attr:`RunOutcome.isolated` says so. It can still read what its user may read: this
keeps accidents and common mischief in, and is no prison for a determined attacker, for whom a
virtual machine is the place.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import EvaluationError

_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class RunOutcome:
    """``passed``: the program ran to its end; ``reason`` says what happened otherwise.

    ``isolated``: it had no network; None where the time was over before it could say.
    """

    passed: bool
    reason: str
    isolated: bool | None


@dataclass(frozen=True)
class Sandbox:
    """Limits of one program: wall clock in seconds, memory and each written file in bytes."""

    timeout_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20

    def run(self, program: str) -> RunOutcome:
        """Run ``program`` to its end or to a limit; whatever it prints is thrown away.

        Raises EvaluationError where it cannot be confined, since nothing may run without that.
        """
        word = secrets.token_hex(16)
        job = json.dumps({"program": program, "word": word, "limits": self._limits()})
        with tempfile.TemporaryDirectory(prefix="stillhouse-code-") as folder:
            Path(folder).chmod(0o777)  # the child may be another user, and the folder is thrown away
            process = subprocess.Popen(  # noqa: S603 - our own file, under this very interpreter
                [sys.executable, "-I", "-S", "-B", str(_CHILD)],
                cwd=folder,
                env={},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            try:
                said, complaint = process.communicate(job.encode(), self.timeout_seconds)
            except subprocess.TimeoutExpired:
                return RunOutcome(False, "time is over", None)
            finally:
                _end(process)
        return _outcome(said.decode(errors="replace"), complaint.decode(errors="replace"), word)

    def _limits(self) -> dict[str, int]:
        return {
            "RLIMIT_CPU": max(1, int(self.timeout_seconds + 1)),
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": 32,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole session, and collect it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _outcome(said: str, complaint: str, word: str) -> RunOutcome:
    # The child closes its standard error before the program begins, so a complaint is about the child.
    if said.startswith("unusable") or complaint:
        raise EvaluationError(f"generated code cannot be confined on this machine: {said or complaint.strip()}")
    network, _, verdict = said.partition(" ")
    if verdict == word:
        return RunOutcome(True, "", network == "isolated")
    reason = verdict.removeprefix("failed ") if verdict.startswith("failed ") else "it ended early"
    return RunOutcome(False, reason, network == "isolated" if said else None)
