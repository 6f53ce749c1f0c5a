"""A study's folder as its page reads it, finished or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from stillhouse.errors import OutputError
from stillhouse.report.rundata import RunData, is_run, read_run
from stillhouse.run_directory import read_json
from stillhouse.study.analysis import Analysis, analyse

RESULT_NAME, ANALYSIS_NAME, STUDY_NAME = "study_result.json", "analysis.json", "study.yaml"
Json = dict[str, Any]


@dataclass(frozen=True)
class FirstRun:
    """One finished run of a cell: its seed, its directory and result, and what the study kept of it."""

    seed: int
    run: RunData
    result: Json
    kept: Json


@dataclass
class StudyData:
    """What a study wrote. ``notes`` grow with what is missing or damaged in the runs that are looked at."""

    folder: Path
    result: Json
    analysis: Json
    notes: list[str] = field(default_factory=list)
    _runs: dict[str, RunData | None] = field(default_factory=dict)

    @property
    def rows(self) -> list[Json]:
        """The cells of the grid, one for each combination of labels and seed."""
        listed: list[Json] = self.result["rows"]
        return listed

    def finished(self, arm: Mapping[str, Any], size: str | None) -> list[Json]:
        """The finished rows of an arm (as ``analysis.json`` has it) at one size, in the order of the seeds."""
        wanted = self.labels_of(arm, size)
        rows = [row for row in self.rows if row["status"] == "done" and dict(row["labels"]) == wanted]
        return sorted(rows, key=lambda row: int(row["seed"]))

    def first_run(self, arm: Mapping[str, Any], size: str | None) -> FirstRun | None:
        """The first finished seed of a cell whose run directory can be read; None where there is none."""
        for row in self.finished(arm, size):
            run = self.run(str(row["run"]))
            if run is not None and run.result is not None:
                return FirstRun(int(row["seed"]), run, run.result, row["result"])
        return None

    def labels_of(self, arm: Mapping[str, Any], size: str | None) -> dict[str, str]:
        """The labels of a cell, by axis."""
        roles = self.analysis["roles"]
        parts = {roles["method"]: arm["method"], roles["size"]: size, roles["teacher"]: arm["teacher"], **arm["group"]}
        return {axis: label for axis, label in parts.items() if axis is not None}

    def run_folder(self, name: object) -> Path | None:
        """The directory of a run, or None where the name leads out of the study's folder."""
        folder = self.folder.resolve()
        path = (folder / str(name)).resolve()
        return path if path != folder and path.is_relative_to(folder) else None

    def run(self, name: str) -> RunData | None:
        """Read a run directory once; None, and a note, where it is not there or damaged."""
        if name not in self._runs:
            self._runs[name] = self._read(name)
        return self._runs[name]

    def _read(self, name: str) -> RunData | None:
        folder = self.run_folder(name)
        if folder is None:
            self.notes.append(f"{name}: this run lies outside the study's folder and was left out.")
            return None
        if not is_run(folder):
            note = "Some run directories are not here, so learning curves and samples are incomplete."
            if note not in self.notes:
                self.notes.append(note)
            return None
        try:
            return read_run(folder)
        except OutputError as error:
            self.notes.append(f"This run cannot be read and was left out of curves and samples: {error}")
            return None


def is_study(folder: Path) -> bool:
    """Whether a study has written its results into ``folder``."""
    return (folder / RESULT_NAME).is_file()


def read_study_folder(folder: Path) -> StudyData:
    """Read a study's results, and its analysis or, where that is missing or of an earlier state, analyse anew.

    Raises OutputError when the folder holds no study or a file is damaged, DataError for rows that make no sense.
    """
    if not is_study(folder):
        raise OutputError(f"{folder}: no study is here ({RESULT_NAME} is missing); give the `output` of a study file")
    result = read_json(folder / RESULT_NAME)
    analysis: Json = read_json(folder / ANALYSIS_NAME) if (folder / ANALYSIS_NAME).is_file() else {}
    return StudyData(folder, result, analysis if _describes(analysis, result) else analyse(result).to_json())


def _describes(analysis: Any, result: Any) -> bool:
    """Whether the analysis is whole and of these rows, as far as the counts of their statuses tell."""
    try:
        statuses = Counter(row["status"] for row in result["rows"])
        whole = {field.name for field in fields(Analysis)} <= analysis.keys()
        return bool(whole and analysis["axes"] == result["axes"] and +Counter(analysis["counts"]) == statuses)
    except (AttributeError, KeyError, TypeError):
        return False
