"""What the commands do: call one function, print what it returns."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from stillhouse.errors import OutputError
from stillhouse.recipe_io import dump_recipe, load_recipe
from stillhouse.run_directory import RunDirectory, read_json, write_text_atomic

if TYPE_CHECKING:
    from stillhouse.training.run import RunOutcome

INTERRUPTED = 128 + signal.SIGINT


def init_recipe(data: str, output: Path, *, overwrite: bool) -> None:
    """Look at ``data`` and write a commented recipe for it."""
    from stillhouse.cli.init import recipe_text
    from stillhouse.data.inspect import inspect_source

    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; name another file with --output, or add --overwrite")
    found = inspect_source(data, base_dir=Path.cwd())
    write_text_atomic(output, recipe_text(found, str(output)))
    console = Console()
    console.print(found.describe(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {output}; next: stillhouse validate {output}", markup=False, highlight=False, soft_wrap=True)


def validate_recipe(path: Path, overrides: Sequence[str]) -> None:
    """Check a recipe without training and print it resolved."""
    from stillhouse.preflight.check import preflight

    recipe = load_recipe(path, overrides)
    report = preflight(recipe, base_dir=Path.cwd())
    sys.stdout.write(dump_recipe(recipe))
    console = Console(stderr=True)
    for line in report.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def train_recipe(path: Path, overrides: Sequence[str], *, overwrite: bool) -> None:
    """Run or resume a recipe and write its report."""
    recipe = load_recipe(path, overrides)
    # Before torch is loaded and anything is read: is there a place for the result?
    RunDirectory.check(recipe, Path.cwd() / recipe.output.dir, overwrite=overwrite)
    from stillhouse.training.run import train

    console = Console()
    outcome = train(recipe, overwrite=overwrite, console=console)
    if outcome.interrupted:
        console.print(
            f"stopped after step {outcome.state.step}; the checkpoint is saved, the same command goes on from there",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(INTERRUPTED)
    if outcome.result is not None:
        finish(outcome, console)


def finish(outcome: RunOutcome, console: Console) -> Path:
    """Write model card and report of a finished run, and print its table."""
    from stillhouse.report.card import write_card
    from stillhouse.report.page import render_run_report

    assert outcome.result is not None
    write_card(outcome.directory / "model", outcome.result)
    page = render_run_report(outcome.directory)
    console.print(result_table(outcome.result))
    for warning in outcome.result["warnings"]:
        console.print(f"note: {warning}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"model:  {outcome.directory / 'model'}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return page


def result_table(result: dict[str, Any]) -> Table:
    """NLL by domain of teacher, student before and student after."""
    evaluation = {name: e for name, e in result["evaluation"].items() if e is not None}
    table = Table(title="held-out NLL, nats/token on content")
    table.add_column("domain", no_wrap=True)
    for name in evaluation:
        table.add_column(name.replace("_", " "), justify="right")
    for domain in result["evaluation"]["student_after"]["domains"]:
        table.add_row(domain, *(_number(e["domains"].get(domain, {}).get("nll")) for e in evaluation.values()))
    table.add_section()
    table.add_row("macro average", *(_number(e["nll"]) for e in evaluation.values()))
    scores = [e["exact_match"] for e in evaluation.values()]
    if any(scores):
        table.add_row("exact match", *("-" if s is None else f"{s['score']:.2f} (n={s['n']})" for s in scores))
    for name in result["evaluation"]["student_after"].get("scores", {}):
        if name != "exact_match":
            found = [e["scores"].get(name) for e in evaluation.values()]
            table.add_row(
                name.replace("_", " "), *("-" if s is None else f"{s['score']:.2f} (n={s['n']})" for s in found)
            )
    return table


def write_report(run: Path, others: Sequence[Path], output: Path | None) -> None:
    """Write the page of one folder, or of several runs side by side."""
    from stillhouse.report.comparison import render_comparison
    from stillhouse.report.folder import render_folder

    if others:
        runs = [run, *others]
        page = render_comparison(runs, [r.name for r in runs], output or Path("comparison.html"))
    else:
        page = render_folder(run)
    Console().print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)


def push_model(run: Path, repo: str, *, private: bool, dry_run: bool) -> None:
    """Upload a model folder, or say what would be uploaded."""
    from stillhouse.report.push import push

    model = run / "model" if (run / "model").is_dir() else run
    for line in push(model, repo, private=private, dry_run=dry_run).lines():
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def load_result(run: Path) -> dict[str, Any]:
    """Read ``result.json`` of a finished run."""
    result: dict[str, Any] = read_json(run / "result.json")
    return result


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
