"""A journal of answers: one JSON line each, so that a killed labelling goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError, OutputError


class Journal:
    """Answers by key, appended to a JSONL file as they come.

    A last line that a kill has cut off is dropped. Raises DataError naming the line when the file is
    damaged elsewhere, and OutputError when it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with path.open("r+b") as file:
                    file.truncate(whole)
        except OSError as error:
            raise self._unusable(error) from error
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            self._load(line, number)

    def _load(self, line: bytes, number: int) -> None:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("key"), str):
            raise DataError(
                f"{self._path}:{number}: is no line of a journal of answers; delete the line, and it is asked for again"
            )
        self._answers[value.pop("key")] = value

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer kept under ``key``, if there is one."""
        return self._answers.get(key)

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer; when this returns, a kill of the process does not lose it."""
        line = json.dumps({"key": key, **answer}, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            # One write in append mode, so that two processes do not mix their lines.
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            raise self._unusable(error) from error
        self._answers[key] = answer

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path}: the journal of answers cannot be used ({error.strerror or error}); "
            "free some space or choose another place"
        )
