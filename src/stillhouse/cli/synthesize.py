"""The command that makes new rows from human ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from stillhouse.errors import SynthesisError
from stillhouse.recipe_io import load_recipe
from stillhouse.report.synthesis import render_synthesis
from stillhouse.run_directory import read_json
from stillhouse.synthesis.candidates import REASONS
from stillhouse.synthesis.from_recipe import synthesis_config, synthesize_recipe, write_writer_rows
from stillhouse.synthesis.run import REPORT, ROWS

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe
    from stillhouse.synthesis.run import SynthesisProgress


def synthesize_rows(path: Path, overrides: Sequence[str], *, overwrite: bool) -> None:
    """Make the rows of a recipe's synthesis, and print what was kept, what was not, and what comes next."""
    recipe, console = load_recipe(path, overrides), Console()
    config = synthesis_config(recipe)
    folder = Path.cwd() / Path(config.dir).expanduser()
    command = " ".join(["stillhouse", "synthesize", str(path), *overrides])
    columns = (TextColumn("synthesize"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("synthesize", total=None, said="")

            def progress(now: SynthesisProgress) -> None:
                expected = "" if now.expected is None else f" of about {now.expected}"
                said = f"{now.kept}/{now.target} rows, {now.candidates}{expected} candidates"
                bar.update(task, completed=now.kept, total=now.target, said=said)

            outcome = synthesize_recipe(recipe, base_dir=Path.cwd(), overwrite=overwrite, progress=progress)
    except SynthesisError:
        # There is no row, but there is a report on why.
        console.print(outcome_table(read_json(folder / REPORT)))
        _say(console, f"report: {render_synthesis(folder, command)}")
        raise
    console.print(outcome_table(outcome.report))
    for warning in outcome.report["warnings"]:
        _say(console, f"note: {warning}")
    page = render_synthesis(folder, command)
    _say(console, f"{outcome.rows} rows: {Path(config.dir) / ROWS}   report: {page}")
    _say(console, next_step(recipe, path))


def writer_rows(path: Path, overrides: Sequence[str], output: Path, rows_per_seed: int) -> None:
    """Write the rows that teach a model to write inputs."""
    recipe = load_recipe(path, overrides)
    count = write_writer_rows(recipe, output, rows_per_seed=rows_per_seed, base_dir=Path.cwd())
    _say(
        Console(),
        f"wrote {count} rows to {output}; train on them with `objective: {{type: sft}}`, then name the model as"
        " synthesis.input_model",
    )


def outcome_table(report: dict[str, Any]) -> Table:
    """Kept and not kept, by reason."""
    table = Table(title=f"{report['kept']} of {report['target']} rows from {report['seeds']} seeds")
    table.add_column("outcome", no_wrap=True)
    table.add_column("candidates", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    total = max(1, report["candidates"])
    table.add_row("kept", str(report["kept"]), f"{report['kept'] / total:.0%}", "")
    table.add_section()
    for name, count in sorted(report["rejected"].items(), key=lambda item: -item[1]):
        table.add_row(name, str(count), f"{count / total:.0%}", REASONS[name])
    return table


def next_step(recipe: Recipe, path: Path) -> str:
    """The commands that come next, or how to make a stage read the rows."""
    assert recipe.synthesis is not None
    cached = recipe.teacher is not None and recipe.teacher.cache is not None
    commands = f"stillhouse capture {path}, then stillhouse train {path}" if cached else f"stillhouse train {path}"
    rows = Path(recipe.synthesis.dir) / ROWS
    sources = [s.path for stage in recipe.stages if stage.data is not None for s in stage.data.train]
    if any(Path(source) == rows for source in [*sources, *(s.path for s in recipe.data.train)]):
        return f"next: {commands}"
    return f"next: name the rows in a stage (`data: {{train: [{{path: {rows}}}]}}`), then {commands}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
