"""The command that writes the study of a two-stage recipe and its controls."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from stillhouse.errors import OutputError, RecipeError
from stillhouse.recipe_io import load_recipe
from stillhouse.run_directory import read_json, write_text_atomic
from stillhouse.study.config import StudyConfig
from stillhouse.study.grid import plan_study
from stillhouse.synthesis.arms import ALL_ROWS, arms_study, split_ratios
from stillhouse.synthesis.run import REPORT


@dataclass(frozen=True)
class ArmsOptions:
    """Options of ``stillhouse arms``; lists are as typed, with commas."""

    seeds: str
    ratios: str
    sizes: str
    synthetic: str | None
    output: Path


def write_arms(path: Path, options: ArmsOptions) -> None:
    """Write the study file of a recipe's arms, and print how to run it."""
    recipe = load_recipe(path)
    first = recipe.stages[0].data
    synthetic = options.synthetic or (first.train[0].path if first is not None else "")
    seeds = _whole(options.seeds, "--seeds")
    if not seeds:
        raise RecipeError("--seeds: there is none; name at least one, for example 0,1,2")
    ratios, sizes = _numbers(options.ratios, "--ratios"), _whole(options.sizes, "--sizes")
    report = _report(synthetic, seeds[0])
    # Seeds that were left out of the synthesis are still rows that the human stage trains on.
    num_human = report["seeds"] + len(report["contaminated_seeds"])
    ratio = report["kept"] / num_human
    study = arms_study(
        recipe,
        base=os.path.relpath(path, options.output),
        output=str(options.output),
        seeds=seeds,
        synthetic=synthetic,
        ratio=ratio,
        num_human=num_human,
        ratios=ratios,
        sizes=sizes,
    )
    target = options.output / "study.yaml"
    if target.exists():
        raise OutputError(f"{target}: exists already; delete it, or choose another --output")
    # The folder may not be there yet, and paths lead out of it.
    plan = plan_study(StudyConfig.from_mapping({**study, "base": str(path)}), Path(), where=str(target))
    write_text_atomic(target, f"# Written by `stillhouse arms {path}`. Edit it as you like.\n{study_yaml(study)}")
    for text in (
        *split_ratios(ratios, ratio)[1],
        f"wrote {target}: {len(plan.runs)} runs of {len(study['axes']['arm'])} arms",
        f"next: stillhouse study {target} --dry-run, which says how long they take",
    ):
        Console().print(text, markup=False, highlight=False, soft_wrap=True)


def study_yaml(study: dict[str, Any]) -> str:
    """Return a study as YAML with the innermost values on one line."""
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _report(synthetic: str, seed: int) -> dict[str, Any]:
    """What became of the synthesis whose rows the arms name; of the first seed and all human rows."""
    folder = Path(synthetic.replace("{human}", ALL_ROWS).replace("{seed}", str(seed))).parent
    if not synthetic or not (folder / REPORT).is_file():
        raise OutputError(
            f"{folder / REPORT}: there is none; run `stillhouse synthesize` first, so that the arms know how many rows"
            " there are for each human one"
        )
    report: dict[str, Any] = read_json(folder / REPORT)
    if not report["kept"]:
        raise OutputError(f"{folder / REPORT}: no row was kept, so there is nothing to compare; mend the synthesis")
    return report


def _numbers(text: str, option: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if (text.strip() and not found) or any(number < 0 for number in found):
        raise RecipeError(f"{option} {text}: expected numbers with commas, for example 0,1,2")
    return found


def _whole(text: str, option: str) -> list[int]:
    found = _numbers(text, option)
    if not all(number.is_integer() for number in found):
        raise RecipeError(f"{option} {text}: expected whole numbers with commas, for example 0,1,2")
    return [int(number) for number in found]
