"""The commands that run many recipes: ``study`` and ``compare``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stillhouse.cli.commands import INTERRUPTED
from stillhouse.study.config import StudyConfig
from stillhouse.study.estimate import Durations, preflight_durations
from stillhouse.study.grid import Plan, plan_study
from stillhouse.study.runner import StudyOutcome, plan_only, run_study
from stillhouse.study.view import open_view

FAILED = 1


@dataclass(frozen=True)
class StudyOptions:
    """Options of ``stillhouse study``; None leaves the file's value."""

    retry_failed: bool = False
    dry_run: bool = False
    jobs: int | None = None


def study_file(path: Path, options: StudyOptions) -> None:
    """Run or resume the study that a file describes, and print its table."""
    config = StudyConfig.from_yaml(path)
    if options.jobs is not None:
        config = config.model_copy(update={"jobs": options.jobs})
    run_config(config, path, options)


def run_config(config: StudyConfig, path: Path, options: StudyOptions) -> None:
    """Run a study whose relative paths start beside ``path``."""
    console, base_dir = Console(), Path.cwd()
    plan = plan_study(config, path.parent, where=str(path), sizes=lambda: _sizes(base_dir))
    view = open_view(console)

    def estimate(plan: Plan, names: Any) -> Durations:
        return preflight_durations(plan, names, base_dir=base_dir)

    if options.dry_run:
        plan_only(plan, base_dir=base_dir, view=view, retry_failed=options.retry_failed, estimate=estimate)
        for name in plan.runs:
            console.print(name, markup=False, highlight=False, soft_wrap=True)
        return
    outcome = run_study(plan, base_dir=base_dir, view=view, retry_failed=options.retry_failed, estimate=estimate)
    _finish(outcome, path, console)


def _sizes(base_dir: Path) -> Any:
    from stillhouse.study.sizes import model_sizes

    return model_sizes(base_dir)


def _finish(outcome: StudyOutcome, path: Path, console: Console) -> None:
    console.print(results_table(outcome.result))
    command = f"stillhouse study {path}"
    if outcome.interrupted:
        console.print(f"stopped; `{command}` goes on from here", markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    console.print(f"results: {outcome.folder / 'study_result.json'}", markup=False, highlight=False, soft_wrap=True)
    if outcome.num_failed:
        console.print(
            f"{outcome.num_failed} runs failed; `{command} --retry-failed` tries them again",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(FAILED)


def results_table(result: dict[str, Any]) -> Table:
    """A row for each combination of labels: mean over the seeds that are done."""
    table = Table(title=result["name"])
    for axis in result["axes"]:
        table.add_column(axis, no_wrap=True)
    for column in ("seeds", "NLL", "gap closed", "tokens", "seconds"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(tuple(row["labels"].values()), []).append(row)
    for labels, rows in groups.items():
        done = [row["result"] for row in rows if row["result"] is not None]
        table.add_row(
            *labels,
            f"{len(done)}/{len(rows)}",
            _mean(done, "nll", ".4f"),
            _mean(done, "gap_closed", ".0%"),
            _mean(done, "tokens", ".0f"),
            _mean(done, "seconds", ".0f"),
        )
    return table


def _mean(results: list[dict[str, Any]], name: str, form: str) -> str:
    values = [result[name] for result in results if result[name] is not None]
    return format(sum(values) / len(values), form) if values else "-"
