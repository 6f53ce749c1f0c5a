"""``stillhouse quickstart``: the main job on data that the project owns, SFT beside KD."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stillhouse.cli.commands import INTERRUPTED, finish, load_result
from stillhouse.errors import OutputError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import read_mapping, recipe_from_mapping
from stillhouse.report.comparison import render_comparison
from stillhouse.run_directory import RunDirectory
from stillhouse.training.run import train


def run_quickstart(output: Path, *, overwrite: bool) -> None:
    """Train the KD and the SFT arm from one pruned student, compare them, and show a sample.

    A finished arm is not repeated; an interrupted one is resumed.
    """
    console, started = Console(), time.monotonic()
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: this is a file; name a folder with --output")
    kd = quickstart_recipe("kd", output)
    sft = quickstart_recipe("sft", output)
    for recipe in (kd, sft):
        _run_arm(recipe, overwrite=overwrite, console=console)
    results = {name: load_result(output / name) for name in ("kd", "sft")}
    page = render_comparison([output / "kd", output / "sft"], ["KD", "SFT"], output / "report.html")
    console.print(comparison_table(results))
    console.print(verdict(results), markup=False, highlight=False, soft_wrap=True)
    _show_sample(console, results)
    minutes = (time.monotonic() - started) / 60
    console.print(
        f"\nreport: {page}   model: {output / 'kd' / 'model'}   ({minutes:.1f} minutes)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def quickstart_recipe(arm: str, output: Path) -> Recipe:
    """The shipped recipe for one arm, ``kd`` or ``sft``.

    The SFT arm starts from the student that the KD arm pruned, so both start from the same weights.
    """
    folder = Path(str(files("stillhouse") / "quickstart"))
    data = read_mapping(folder / "recipe.yaml")
    for split in ("train", "validation"):
        for source in data["data"][split]:
            source["path"] = str(folder / source["path"])
    data["output"] = {"dir": str(output / arm), "license": "apache-2.0"}
    if arm == "sft":
        data["stages"][0]["objective"] = {"type": "sft"}
        data["student"] = {"path": str((output / "kd" / "initial").absolute())}
    return recipe_from_mapping(data, where="quickstart")


def _run_arm(recipe: Recipe, *, overwrite: bool, console: Console) -> None:
    directory = RunDirectory(Path(recipe.output.dir))
    name = recipe.stages[0].objective.type.upper()
    if directory.is_done and not overwrite:
        console.print(f"{name}: finished already in {directory.path}", markup=False, highlight=False, soft_wrap=True)
        return
    console.rule(f"{name}")
    outcome = train(recipe, overwrite=overwrite, console=console)
    if outcome.interrupted:
        console.print(f"stopped at step {outcome.state.step}; run the same command to go on", highlight=False)
        raise SystemExit(INTERRUPTED)
    finish(outcome, console)


def comparison_table(results: dict[str, dict[str, Any]]) -> Table:
    """Macro NLL, share of the gap closed, exact match and speed of each arm."""
    table = Table(title="SFT beside KD, same student, same documents, same steps")
    for column in ("", "held-out NLL", "gap closed", "exact match", "tokens/s"):
        table.add_column(column, justify="left" if not column else "right")
    any_result = results["kd"]
    for label, key in (("teacher", "teacher"), ("student before", "student_before")):
        evaluation = any_result["evaluation"][key]
        table.add_row(label, f"{evaluation['nll']:.3f}", "", _score(evaluation), "")
    for name, result in results.items():
        headline, evaluation = result["headline"], result["evaluation"]["student_after"]
        closed = headline["gap_closed"]
        table.add_row(
            f"student after {name.upper()}",
            f"{headline['student_after']:.3f}",
            "-" if closed is None else f"{closed:.0%}",
            _score(evaluation),
            f"{result['training']['tokens_per_second']:.0f}",
        )
    return table


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """One sentence: which arm is better here, and by how much."""
    kd, sft = (results[name]["headline"]["student_after"] for name in ("kd", "sft"))
    better, worse = ("KD", "SFT") if kd < sft else ("SFT", "KD")
    return f"{better} beats {worse} here by {abs(kd - sft):.3f} nats/token (one seed; a difference this size may be chance)."


def _score(evaluation: dict[str, Any]) -> str:
    score = evaluation["exact_match"]
    return "-" if score is None else f"{score['score']:.2f} (n={score['n']})"


def _show_sample(console: Console, results: dict[str, dict[str, Any]]) -> None:
    sample = results["kd"]["samples"][0]
    console.print("\na held-out chat:", highlight=False)
    for who, text in (
        ("user", sample["prompt"]),
        ("teacher", sample["teacher"]),
        ("student before", sample["student_before"]),
        ("student after KD", sample["student_after"]),
        ("student after SFT", results["sft"]["samples"][0]["student_after"]),
    ):
        console.print(f"  {who}: {_short(text)}", markup=False, highlight=False, soft_wrap=True)


def _short(text: str | None, limit: int = 300) -> str:
    flat = " ".join((text or "").split())
    return flat if len(flat) <= limit else flat[:limit] + " ..."
