"""One page that puts finished runs side by side, for example SFT beside KD on the same budget."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stillhouse.errors import OutputError
from stillhouse.report import charts
from stillhouse.report.charts import Chart, Series
from stillhouse.report.findings import LEVEL_NATS, NAME_LIMIT, comparison_headline, run_labels
from stillhouse.report.html import write_page
from stillhouse.report.mixture import perplexity_table
from stillhouse.report.rundata import RunData, read_run
from stillhouse.report.text import chart_label, clip

COLORS = ("@student", "@run2", "@run3", "@run4", "@run5", "@run6", "@run7", "@run8")
MAX_RUNS = len(COLORS)


def render_comparison(run_dirs: Sequence[Path], names: Sequence[str], out: Path) -> Path:
    """Write one page on two to eight finished runs; ``names`` are shown where objectives do not tell them apart.

    Raises OutputError when a run is missing, damaged or not finished, when there are too few or too
    many, or when ``out`` cannot be written.
    """
    if not 2 <= len(run_dirs) <= MAX_RUNS:
        raise OutputError(
            f"a comparison takes 2 to {MAX_RUNS} runs and got {len(run_dirs)}; give other run directories"
        )
    runs = [read_run(path) for path in run_dirs]
    for run in runs:
        if run.result is None:
            raise OutputError(
                f"{run.path}: this run is not finished (no result.json); finish it with the same train command"
            )
    results = [run.result for run in runs if run.result is not None]
    labels = run_labels(runs, names)
    return write_page(
        out,
        "comparison.html.jinja",
        headline=comparison_headline(runs, names),
        labels=labels,
        level=LEVEL_NATS,
        best=_best([result["headline"]["student_after"] for result in results]),
        runs=[_summary(label, run, out.parent) for label, run in zip(labels, runs, strict=True)],
        domains=_domain_rows(results),
        bars=_bars(labels, results),
        perplexities=perplexity_table([clip(label, NAME_LIMIT) for label in labels], results),
        curves=charts.run_curves([(n, c, r.evaluations) for n, c, r in zip(labels, COLORS, runs, strict=False)]),
        samples=_samples(labels, results),
        warnings=_warnings(labels, results),
        commands=[f"stillhouse train {run.recipe['output']['dir']}/recipe.yaml output.dir=NEW_FOLDER" for run in runs],
    )


def _summary(label: str, run: RunData, page_folder: Path) -> dict[str, Any]:
    result = run.result
    assert result is not None
    report = run.path / "report.html"
    return {
        "label": label,
        "name": run.name,
        "link": quote(Path(os.path.relpath(report, page_folder)).as_posix()) if report.is_file() else None,
        **result["headline"],
        "exact_match": result["evaluation"]["student_after"]["exact_match"],
        **result["training"],
    }


def _domain_rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per domain of the first run: teacher and start, each run's end, and which of them is best."""
    rows = []
    for name in results[0]["evaluation"]["student_after"]["domains"]:
        after = [result["evaluation"]["student_after"]["domains"].get(name, {}).get("nll") for result in results]
        teacher, before = (_nll(results[0], model, name) for model in ("teacher", "student_before"))
        rows.append({"domain": name, "teacher": teacher, "before": before, "after": after, "best": _best(after)})
    return rows


def _best(values: Sequence[float | None]) -> int | None:
    """Index of the lowest value; None where the next one is level with it."""
    known = sorted(value for value in values if value is not None)
    if len(known) < 2 or known[1] - known[0] < LEVEL_NATS:
        return None
    return list(values).index(known[0])


def _nll(result: dict[str, Any], model: str, domain: str) -> float | None:
    evaluation = result["evaluation"][model]
    return evaluation["domains"].get(domain, {}).get("nll") if evaluation else None


def _bars(labels: Sequence[str], results: Sequence[dict[str, Any]]) -> Chart:
    names = list(results[0]["evaluation"]["student_after"]["domains"])
    series = [
        Series(f"{chart_label(label)} student", color, [_nll(result, "student_after", name) for name in names])
        for label, color, result in zip(labels, COLORS, results, strict=False)
    ]
    series.insert(0, Series("start", "@before", [_nll(results[0], "student_before", name) for name in names]))
    if results[0]["evaluation"]["teacher"]:
        series.append(Series("teacher", "@teacher", [_nll(results[0], "teacher", name) for name in names]))
    return charts.domain_bars(names, series)


def _samples(labels: Sequence[str], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first run's samples, each with the answers of all runs that generated for the same prompt."""
    answers = [{(s["domain"], s["prompt"]): s["student_after"] for s in result["samples"]} for result in results]
    return [
        {
            "domain": sample["domain"],
            "prompt": sample["prompt"],
            "gold": sample["gold"],
            "teacher": sample["teacher"],
            "students": [
                (label, found.get((sample["domain"], sample["prompt"])))
                for label, found in zip(labels, answers, strict=True)
            ],
        }
        for sample in results[0]["samples"]
    ]


def _warnings(labels: Sequence[str], results: Sequence[dict[str, Any]]) -> list[str]:
    """Each warning once; one that not every run has is marked with its runs."""
    owners: dict[str, list[str]] = {}
    for label, result in zip(labels, results, strict=True):
        for warning in result["warnings"]:
            owners.setdefault(warning, []).append(label)
    return [w if len(who) == len(labels) else f"{', '.join(who)}: {w}" for w, who in owners.items()]
