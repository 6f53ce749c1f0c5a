"""The tables of a study's page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from stillhouse.report.study_arms import Arms, key_of
from stillhouse.report.study_data import STUDY_NAME, StudyData
from stillhouse.report.study_marks import MAX_GROUPS, NATS, rounded
from stillhouse.report.table import Table, interval, stacked, table
from stillhouse.report.text import clip, count, number, share

Json = Mapping[str, Any]
MAX_ERROR = 300


def cell_table(arms: Arms) -> Table:
    """Every arm at every size: NLL with interval, gap closed, agreement and scores."""
    cells = [(key, cell) for key in arms.distinct for cell in arms.cells(key)]
    sized = any(cell["rows"] is not None for _, cell in cells)
    metrics = list(dict.fromkeys(metric for _, cell in cells for metric in cell["scores"]))
    columns = ["Arm", *(["Rows"] if sized else []), "NLL (95 % interval)", "Start", "Teacher", "Gap closed"]
    rows = [
        (
            arms.style(key).name,
            *([count(cell["rows"])] if sized else []),
            interval(cell["nll"]),
            number(cell["before_nll"], 3),
            number(cell["teacher_nll"], 3),
            share(cell["gap_closed"]),
            *(interval(cell["scores"].get(metric)) for metric in metrics),
            str(len(cell["seeds"])),
        )
        for key, cell in cells
    ]
    caption = f"Held-out NLL in {NATS} (lower is better): means over seeds, with Student-t intervals in brackets."
    return table(caption, [*columns, *(clip(metric, 40) for metric in metrics), "Seeds"], rows)


def gain_tables(analysis: Json, arms: Arms) -> list[Table]:
    """Gains over the baseline, a row per arm and a column per data size; nothing in a study without sizes."""
    tables = []
    for group in arms.groups[:MAX_GROUPS]:
        found = [g for g in analysis["gains"] if key_of(g["arm"]) in arms.in_group(group) and g["rows"] is not None]
        sizes = sorted({gain["rows"] for gain in found})
        by_arm: dict[str, dict[float, Json]] = {}
        for gain in found:
            by_arm.setdefault(arms.name(gain["arm"]), {})[gain["rows"]] = gain["difference"]
        rows = [(name, *(stacked(cells.get(size)) for size in sizes)) for name, cells in by_arm.items()]
        caption = (
            f"Gain over {arms.baseline_name} in {NATS} by training rows, and under it the 95 % Student-t interval of the "
            "differences, paired by seed. Above 0 the arm is better."
        )
        if rows:
            tables.append(table(caption, ["Arm", *(f"{count(size)} rows" for size in sizes)], rows))
    return tables


def crossover_table(analysis: Json, arms: Arms, *, scores: bool = False) -> Table | None:
    """Where each arm stops beating the baseline, always beside the share of resamples that never cross.

    By NLL, or by the other ``scores``; None where there is nothing to say.
    """
    rows = [
        (
            arms.name(found["arm"]),
            *([str(found["metric"])] if scores else []),
            _crossing(found["crossover"]),
            "–" if found["tokens"] is None else count(rounded(found["tokens"])),
            _range(found["crossover"]),
            share(found["crossover"]["fraction_without_root"]),
            "fit" if found["crossover"]["how"] == "fit" else "straight lines",
        )
        for found in analysis["crossovers"]
        if (found["metric"] != "nll") == scores
    ]
    metric = ["Metric"] if scores else []
    columns = ["Arm", *metric, "Crossover at rows", "Tokens", "Over resampled seeds", "Never cross", "Curves"]
    caption = (
        f"Where the advantage over {arms.baseline_name} ends. “Never cross” is the share of resampled seeds without a "
        "crossing; with fewer than 8 seeds the range is no 95 % interval."
    )
    return table(caption, columns, rows, num_words=1 + scores) if rows else None


def _crossing(found: Json) -> str:
    if found["size"] is not None:
        return count(rounded(found["size"])) + (" (extrapolated)" if found["extrapolated"] else "")
    low, high = (count(rounded(v)) for v in found["searched"])
    words = {
        "method_ahead": "none: ahead",
        "baseline_ahead": "none: behind",
        "reverse": "none: behind first, ahead later",
        "level": "none: level",
    }[found["status"]]
    return f"{words} ({low} to {high})"


def _range(found: Json) -> str:
    if found["quantiles"] is None:
        return "–"
    low, _, high = found["quantiles"]
    return f"{count(rounded(low))} to {count(rounded(high))} ({found['interval_kind']})"


def change_table(analysis: Json, arms: Arms) -> Table | None:
    """How each gain moves with the data, and what a stronger teacher changes."""
    rows = [(arms.name(s["arm"]), "2.7 times (an e-fold) more data", stacked(s["slope"])) for s in analysis["slopes"]]
    rows += [
        (
            ", ".join([str(step["method"]), *(f"{axis} {label}" for axis, label in _pairs(step["group"]))]),
            f"teacher {step['stronger']} instead of {step['weaker']}, better by {number(step['nll_step'], 3)}"
            + ("" if step["size"] is None else f", size {step['size']}"),
            stacked(step["difference"]),
        )
        for step in analysis["teacher_steps"]
    ]
    caption = f"What changes the gain, and by how much, in {NATS}, paired by seed, with 95 % Student-t interval."
    return table(caption, ["Method", "Change", "Effect"], rows, num_words=2) if rows else None


def score_table(analysis: Json, arms: Arms) -> Table | None:
    """Gains on the other metrics, in each one's own unit."""
    rows = [
        (str(g["metric"]), arms.name(g["arm"]), g["size"] or "–", interval(g["difference"]), str(g["difference"]["n"]))
        for g in analysis["score_gains"]
    ]
    caption = f"Gain over {arms.baseline_name} on other metrics (above 0 the method is better), paired by seed."
    return (
        table(caption, ["Metric", "Arm", "Size", "Gain (95 % interval)", "Seeds"], rows, num_words=2) if rows else None
    )


def run_rows(study: StudyData) -> list[dict[str, Any]]:
    """Every cell of the grid that is missing or failed first, then the finished ones, with links to pages that exist."""
    rows = []
    for row in study.rows:
        folder = study.run_folder(row["run"])
        name = str(row["run"])
        rows.append(
            {
                "labels": ", ".join(f"{axis} {label}" for axis, label in row["labels"].items()),
                "seed": row["seed"],
                "status": str(row["status"]),
                "error": clip(row.get("error") or "", MAX_ERROR),
                "run": name,
                "nll": (row.get("result") or {}).get("nll"),
                "link": quote(f"{name}/report.html") if folder is not None else None,
                "has_page": folder is not None and (folder / "report.html").is_file(),
            }
        )
    order = {"failed": 0, "running": 1, "pending": 2}
    return sorted(rows, key=lambda row: order.get(str(row["status"]), 3))


def commands(study: StudyData) -> list[tuple[str, str]]:
    """Shell lines that repeat the study or one of its runs and look at it, each with what it does."""
    done = next((str(row["run"]) for row in study.rows if row["status"] == "done"), None)
    run = None if done is None else study.run(done)
    folder = study.folder.name if run is None else str(run.recipe["output"]["dir"]).removesuffix(f"/{done}")
    lines = []
    if (study.folder / STUDY_NAME).is_file():
        lines.append(("the study: finished runs are not repeated", f"stillhouse study {_quoted(folder, STUDY_NAME)}"))
    if run is not None:
        again = _quoted(folder, f"{done}-again")
        lines.append(("one run", f"stillhouse train {_quoted(folder, f'{done}/recipe.yaml')} output.dir={again}"))
    return [
        *lines,
        ("this page", f"stillhouse report {_quoted(folder)}"),
        ("look at it", f"stillhouse open {_quoted(folder)}"),
    ]


def _quoted(*parts: str) -> str:
    return shlex.quote("/".join(parts))


def _pairs(group: Any) -> Sequence[tuple[str, str]]:
    return list(group.items()) if isinstance(group, Mapping) else [(str(a), str(b)) for a, b in group]
