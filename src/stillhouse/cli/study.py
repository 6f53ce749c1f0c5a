"""The commands that run many recipes: ``study`` and ``compare``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stillhouse.cli.commands import INTERRUPTED
from stillhouse.errors import OutputError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import load_recipe
from stillhouse.report.study import render_study_report
from stillhouse.run_directory import write_json_atomic, write_text_atomic
from stillhouse.study.analysis.analyse import Analysis, analyse
from stillhouse.study.analysis.wording import arm_name
from stillhouse.study.config import StudyConfig
from stillhouse.study.estimate import Durations, preflight_durations
from stillhouse.study.grid import Plan, plan_study
from stillhouse.study.methods import METHODS, method_overrides, method_preparations
from stillhouse.study.runner import StudyOutcome, plan_only, run_study
from stillhouse.study.view import open_view

FAILED = 1
STUDY_NAME = "study.yaml"
ANALYSIS_NAME = "analysis.json"


@dataclass(frozen=True)
class StudyOptions:
    """Options of ``stillhouse study``; None leaves the file's value."""

    retry_failed: bool = False
    dry_run: bool = False
    jobs: int | None = None
    baseline: str | None = None


def study_file(path: Path, options: StudyOptions) -> None:
    """Run or resume the study that a file describes, and print its table."""
    run_config(StudyConfig.from_yaml(path), path, options)


def run_config(config: StudyConfig, path: Path, options: StudyOptions) -> None:
    """Run a study whose relative paths start beside ``path``."""
    config = with_options(config, options)
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
    _keep_study(config, path, outcome.folder)
    _finish(outcome, path, console)


def with_options(config: StudyConfig, options: StudyOptions) -> StudyConfig:
    """The study with what the command line says instead. Raises RecipeError for a baseline that it lacks."""
    given = {"jobs": options.jobs, "baseline": options.baseline}
    changes = {name: value for name, value in given.items() if value is not None}
    return StudyConfig.from_mapping({**config.model_dump(mode="json"), **changes}, where=f"study {config.name!r}")


@dataclass(frozen=True)
class CompareOptions:
    """Options of ``stillhouse compare``."""

    methods: str
    seeds: str
    output: Path | None


def compare_methods(recipe: Path, compare: CompareOptions, options: StudyOptions) -> None:
    """Write the study of one recipe and several methods, and run it."""
    output = compare.output or Path("runs") / f"compare-{recipe.stem}"
    config = with_options(comparison(recipe, compare, output), StudyOptions(baseline=options.baseline))
    path = output / STUDY_NAME
    run_config(_keep_file(path, config), path, options)


def comparison(recipe: Path, compare: CompareOptions, output: Path) -> StudyConfig:
    """The study that puts methods side by side on one recipe; its file is to stand in ``output``."""
    names = [name.strip() for name in compare.methods.split(",") if name.strip()]
    if not names:
        raise RecipeError(f"--methods: name at least one of {', '.join(METHODS)}")
    seeds = [seed.strip() for seed in compare.seeds.split(",") if seed.strip()]
    wrong = [seed for seed in seeds if not seed.isdigit()]
    if wrong or not seeds:
        raise RecipeError(f"--seeds {compare.seeds}: expected whole numbers, for example 0,1,2")
    base = load_recipe(recipe)
    methods = method_overrides(names, base, lambda: _count_steps(base))
    return StudyConfig.from_mapping(
        {
            "name": f"{recipe.stem}: {', '.join(names)}",
            "base": os.path.relpath(recipe, output),
            "output": str(output),
            "seeds": [int(seed) for seed in seeds],
            "prepare": method_preparations(names, base),
            "axes": {"method": methods},
        },
        where="--methods",
    )


def _keep_file(path: Path, config: StudyConfig) -> StudyConfig:
    """Write the study file for people to edit, and return what it says; one that was edited is not replaced.

    The baseline is no part of what is run, so a file that differs in it alone is the same study.
    """
    if not path.exists():
        header = "# Written by `stillhouse compare`. Edit it, then: stillhouse study " + str(path) + "\n"
        write_text_atomic(path, header + config.to_yaml())
        return config
    kept = StudyConfig.from_yaml(path)
    if kept.model_copy(update={"baseline": config.baseline}) != config:
        raise OutputError(
            f"{path}: another study is here; `stillhouse study {path}` goes on with it, or choose another --output"
        )
    return kept


def _keep_study(config: StudyConfig, path: Path, folder: Path) -> None:
    """Keep the study beside its results, so that whoever has these can repeat it; a file of other origin stays."""
    kept, ours = folder / STUDY_NAME, "# A copy, kept by `stillhouse study`"
    if kept.exists() and not kept.read_text(encoding="utf-8").startswith(ours):
        return
    moved = config.model_copy(update={"base": os.path.relpath(path.parent / config.base, folder)})
    write_text_atomic(kept, f"{ours} {path.name}, which replaces it each time.\n{moved.to_yaml()}")


def _count_steps(recipe: Recipe) -> int:
    """Optimizer steps of the shortest stage, which a budget in epochs leaves to the data."""
    from stillhouse.study.sizes import training_steps

    Console().print("counting the training tokens, because the budget is in epochs", soft_wrap=True)
    return training_steps(recipe, Path.cwd())


def _sizes(base_dir: Path) -> Any:
    from stillhouse.study.sizes import model_sizes

    return model_sizes(base_dir)


def _finish(outcome: StudyOutcome, path: Path, console: Console) -> None:
    console.print(results_table(outcome.result))
    _analyse(outcome, console)
    page = render_study_report(outcome.folder)
    command = f"stillhouse study {path}"
    if outcome.interrupted:
        console.print(f"stopped; `{command}` goes on from here", markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    console.print(f"results: {outcome.folder / 'study_result.json'}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report:  {page}", markup=False, highlight=False, soft_wrap=True)
    if outcome.num_failed:
        console.print(
            f"{outcome.num_failed} runs failed; `{command} --retry-failed` tries them again",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(FAILED)


def _analyse(outcome: StudyOutcome, console: Console) -> None:
    """Write ``analysis.json`` and say what it found."""
    if all(row["result"] is None for row in outcome.result["rows"]):
        return
    analysis = analyse(outcome.result)
    write_json_atomic(outcome.folder / ANALYSIS_NAME, analysis.to_json())
    if analysis.gains:
        console.print(gains_table(analysis))
    for line in [*analysis.findings, *(f"note: {caution}" for caution in analysis.cautions)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def gains_table(analysis: Analysis) -> Table:
    """Mean and 95 % Student-t interval of the differences to the baseline, paired by seed."""
    table = Table(title=f"NLL gain over {analysis.baseline}, nats/token, paired by seed")
    for column in ("method", "size", "seeds", "gain", "95 % interval"):
        table.add_column(column, justify="left" if column in ("method", "size") else "right", no_wrap=True)
    for gain in analysis.gains:
        found = gain.difference
        known = found.low is not None and found.high is not None
        table.add_row(
            arm_name(gain.arm),
            gain.size or "-",
            str(found.n),
            f"{found.mean:+.4f}",
            f"{found.low:+.4f} to {found.high:+.4f}" if known else "one seed",
        )
    return table


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
