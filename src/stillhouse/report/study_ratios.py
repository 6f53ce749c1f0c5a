"""Perplexity of the students over their teachers' by domain, before training and after it.

The numbers behind Figure 1 of DDK (arXiv 2407.16154), for every arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.report.study_arms import Arms
from stillhouse.report.study_data import StudyData
from stillhouse.report.table import Table, stacked, table
from stillhouse.report.text import number

MAX_TABLES = 6
MAX_LOG_RATIO = 700.0
"""Beyond this no float holds the ratio; the analysis leaves such a domain out as well."""

Json = Mapping[str, Any]
Column = tuple[str, list[str]]
"""A header and its cells."""


def ratio_tables(study: StudyData, arms: Arms) -> list[Table]:
    """A row per domain; columns for the start and for every arm after training; one table for each size."""
    by_size: dict[str | None, list[Json]] = {}
    for ratio in study.analysis["ratios"]:
        if ratio["domains"]:
            by_size.setdefault(ratio["size"], []).append(ratio)
    return [_ratio_table(size, found, study, arms) for size, found in list(by_size.items())[-MAX_TABLES:]]


def _ratio_table(size: str | None, found: Sequence[Json], study: StudyData, arms: Arms) -> Table:
    domains = list(dict.fromkeys(domain for ratio in found for domain in ratio["domains"]))
    columns = []
    shared, own = _start_columns([_start(ratio, study) for ratio in found], domains)
    for ratio, start in zip(found, own, strict=True):
        name = _full_name(ratio, arms)
        if start is not None:
            columns.append((f"Start of {name}", start))
        cells = [stacked(ratio["domains"].get(domain), 2) for domain in domains]
        columns.append((name, [*cells, stacked(ratio["macro"], 2), number(ratio["largest_over_smallest"])]))
    if shared is not None:
        columns.insert(0, ("Start", shared))
    where = "" if size is None else f" at size {size}"
    caption = f"Perplexity of the student over its teacher's{where}; 1 is level, lower is better."
    if shared is not None or any(own):
        caption += " Start: before training, in the first finished seed."
    headers = [*domains, "Mean of domains", "Largest over smallest"]
    rows = [(header, *(cells[i] for _, cells in columns)) for i, header in enumerate(headers)]
    return table(caption, ["Domain", *(name for name, _ in columns)], rows)


def _start(ratio: Json, study: StudyData) -> dict[str, float] | None:
    """The ratios of a cell's student before training; None where no run directory is here to tell."""
    first = study.first_run(ratio["arm"], ratio["size"])
    if first is None:
        return None
    # The study's row, not the run, knows the teacher that this cell is compared with.
    teacher = first.kept.get("teacher_domains") or {}
    before = first.result["evaluation"]["student_before"]["domains"]
    gaps = {name: float(before[name]["nll"]) - teacher[name] for name in ratio["domains"] if name in before}
    return {name: math.exp(gap) for name, gap in gaps.items() if gap < MAX_LOG_RATIO} or None


def _start_columns(
    starts: Sequence[dict[str, float] | None], domains: Sequence[str]
) -> tuple[list[str] | None, list[list[str] | None]]:
    """One column for all arms where their starts read alike; else none for all, and one for each arm."""
    cells = [None if start is None else _start_cells(start, domains) for start in starts]
    known = [column for column in cells if column is not None]
    if known and all(column == known[0] for column in known):
        return known[0], [None] * len(cells)
    return None, cells


def _start_cells(start: Mapping[str, float], domains: Sequence[str]) -> list[str]:
    values = list(start.values())
    mean, span = sum(values) / len(values), max(values) / min(values)
    return [*(number(start.get(domain)) for domain in domains), number(mean), number(span)]


def _full_name(ratio: Json, arms: Arms) -> str:
    """Ratios are to a teacher, so one method under two teachers is two columns even where its runs are the same."""
    name, teacher = arms.name(ratio["arm"]), ratio["arm"]["teacher"]
    return name if not arms.many_teachers or teacher is None or teacher in name else f"{name}, to {teacher}"
