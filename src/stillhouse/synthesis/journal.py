"""The journal: every candidate as a line, in batches, so that a killed synthesis goes on where it was.

The first line says what the candidates depend on. A batch ends with a line of its own; what
follows the last such line was written by a process that was killed, and is dropped when the
journal is opened: the batch is written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.errors import OutputError
from stillhouse.run_directory import write_text_atomic
from stillhouse.synthesis.candidates import Candidate, Rejection, Usage

FORMAT = 1


class Journal:
    """Candidates on disk. ``batches`` are those written so far; ``seconds`` is the time they took."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open the journal, or begin one. One that ended before its first candidate begins anew as what is asked for.

        Raises OutputError when the one that is there has another identity or is damaged.
        """
        self.path = path
        self.batches: list[list[Candidate]] = []
        self.seconds = 0.0
        header = {"journal": FORMAT, **identity}
        if path.exists():
            self._read(header)
        else:
            write_text_atomic(path, _line(header))

    def append(self, batch: Sequence[Candidate], seconds: float) -> None:
        """Write a batch and flush it to disk."""
        lines = [_line(candidate_json(c)) for c in batch]
        lines.append(_line({"batch": len(self.batches), "seconds": round(seconds, 3)}))
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self.batches.append(list(batch))
        self.seconds += seconds

    def _read(self, header: Mapping[str, Any]) -> None:
        data = self.path.read_bytes()
        end = data.find(b"\n") + 1
        found = _parse(self.path, data[:end] or data, 1)
        if found.get("journal") == FORMAT and found != header and end == len(data):
            # Nothing was made under the old settings; they may be what kept it from beginning.
            write_text_atomic(self.path, _line(header))
            return
        if changed := [
            key for key in sorted({*found, *header}) if found.get(key) != json.loads(_line(header)).get(key)
        ]:
            raise OutputError(
                f"{self.path}: this journal is of another synthesis (different: {', '.join(changed)}); choose another"
                " synthesis.dir, or add --overwrite to begin anew"
            )
        whole, number = end, 1
        pending: list[Candidate] = []
        for raw in data[end:].splitlines(keepends=True):
            number += 1
            if not raw.endswith(b"\n"):
                break
            value = _parse(self.path, raw, number)
            end += len(raw)
            if "batch" in value:
                self.batches.append(pending)
                self.seconds += value["seconds"]
                whole, pending = end, []
            else:
                pending.append(candidate_from_json(value))
        os.truncate(self.path, whole)


def read_candidates(path: Path) -> list[Candidate]:
    """Return the candidates of a journal's whole batches, whatever it depends on.

    Raises OutputError when it cannot be read or is damaged.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror})") from error
    found: list[Candidate] = []
    pending: list[Candidate] = []
    for number, raw in enumerate(lines[1:], start=2):
        if not raw.endswith(b"\n"):
            break
        value = _parse(path, raw, number)
        if "batch" in value:
            found += pending
            pending = []
        else:
            pending.append(candidate_from_json(value))
    return found


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as JSON types."""
    return asdict(candidate)


def candidate_from_json(value: dict[str, Any]) -> Candidate:
    """Rebuild what :func:`candidate_json` gave."""
    rejection = value["rejection"]
    return Candidate(
        **{
            **value,
            "seeds": tuple(value["seeds"]),
            "synthetic": tuple(value["synthetic"]),
            "rejection": None if rejection is None else Rejection(**rejection),
            "input_usage": Usage(**value["input_usage"]),
            "label_usage": Usage(**value["label_usage"]),
        }
    )


def _line(value: Mapping[str, Any]) -> str:
    # Generated text may hold half a surrogate pair or a line separator; ASCII carries both safely.
    return json.dumps(value, allow_nan=False) + "\n"


def _parse(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OutputError(
            f"{path}:{number}: this line is damaged ({error}); delete the journal to begin anew"
        ) from error
    if not isinstance(value, dict):
        raise OutputError(f"{path}:{number}: this is no journal of a synthesis; choose another synthesis.dir")
    return value
