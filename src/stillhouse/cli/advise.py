"""``stillhouse advise`` and ``check-adviser``: ask before the full run, and see how often the answer is right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stillhouse.cli.commands import INTERRUPTED
from stillhouse.errors import RecipeError
from stillhouse.recipe_io import load_recipe
from stillhouse.run_directory import read_json, write_json_atomic
from stillhouse.study.adviser.evidence import Measurement
from stillhouse.study.adviser.recommend import Advice

RESULT_NAME, HIT_RATE_NAME = "study_result.json", "adviser.json"


@dataclass(frozen=True)
class AdviseOptions:
    """Options of ``stillhouse advise``; ``sizes`` is text such as ``100,300``."""

    seeds: int
    sizes: str | None
    jobs: int
    measure_only: bool
    retry_failed: bool


def advise_recipe(path: Path, overrides: Sequence[str], output: Path | None, options: AdviseOptions) -> None:
    """Measure, run or resume the pilot, print and write the advice."""
    recipe = load_recipe(path, overrides)
    sizes = parse_sizes(options.sizes)
    folder = output or Path(f"{recipe.output.dir}-advice")
    from stillhouse.study.adviser.advise import ADVICE_NAME, PilotOptions, advise
    from stillhouse.study.view import open_view

    console = Console()
    pilot = None
    if not options.measure_only:
        pilot = PilotOptions(sizes, tuple(range(options.seeds)), options.jobs, options.retry_failed)
    outcome = advise(recipe, base_dir=Path.cwd(), folder=folder, view=open_view(console), options=pilot)
    console.print(measurement_table(outcome.looked.measurement))
    if outcome.advice is None:
        console.print("stopped; the same command goes on from here", markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    for line in advice_lines(outcome.advice):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if outcome.num_failed:
        console.print(
            f"\n{outcome.num_failed} pilot runs failed; the same command with --retry-failed tries them again",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"\nadvice: {folder / ADVICE_NAME}", markup=False, highlight=False, soft_wrap=True)


def parse_sizes(text: str | None) -> tuple[int, ...] | None:
    """``100,300`` as numbers of rows, ascending. Raises RecipeError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts) or len(set(parts)) < 2:
        raise RecipeError(f"--sizes {text}: expected at least two different numbers of rows, for example 100,300,900")
    return tuple(sorted({int(part) for part in parts}))


def measurement_table(measurement: Measurement) -> Table:
    """Teacher and untrained student by domain."""
    table = Table(title="held-out rows, before any training")
    table.add_column("domain", no_wrap=True)
    for column in ("teacher NLL", "student NLL", "teacher right", "its entropy", "agree", "tokens"):
        table.add_column(column, justify="right")
    for name, domain in measurement.domains.items():
        numbers = (domain.teacher_nll, domain.student_nll)
        shares = (domain.teacher_accuracy, domain.agreement)
        table.add_row(
            name,
            *(f"{n:.3f}" for n in numbers),
            f"{shares[0]:.0%}",
            f"{domain.teacher_entropy:.3f}",
            f"{shares[1]:.0%}",
            str(domain.content_tokens),
        )
    table.add_section()
    macro = measurement.macro
    table.add_row(
        "macro average",
        f"{macro('teacher_nll'):.3f}",
        f"{macro('student_nll'):.3f}",
        f"{macro('teacher_accuracy'):.0%}",
        f"{macro('teacher_entropy'):.3f}",
        f"{macro('agreement'):.0%}",
        "",
    )
    return table


def advice_lines(advice: Advice) -> list[str]:
    """The advice, then what it rests on and what it leaves open."""
    lines = ["", *advice.sentences, "", "What this cannot tell:", *(f"- {note}" for note in advice.cannot_tell)]
    if advice.assumptions:
        lines += ["", "What the pilot assumes:", *(f"- {note}" for note in advice.assumptions)]
    return lines


def check_adviser(study: Path, baseline: str | None) -> None:
    """Print how often the adviser is right on a finished study, and write ``adviser.json`` into its folder."""
    from stillhouse.study.adviser.validate import validate_adviser

    found = validate_adviser(read_json(study / RESULT_NAME), baseline=baseline)
    table = Table(title="the adviser on held-out sizes")
    for column in ("method", "teacher", "seen up to", "asked for", "advice", "true gain", "outcome"):
        table.add_column(column)
    for trial in found.trials:
        table.add_row(
            str(trial.arm.method),
            trial.arm.teacher or "",
            f"{trial.from_rows:.0f}",
            f"{trial.to_rows:.0f}",
            trial.verdict,
            f"{trial.truth.mean:.3f}",
            trial.outcome,
        )
    console = Console()
    console.print(table)
    console.print(found.sentence(), markup=False, highlight=False, soft_wrap=True)
    write_json_atomic(study / HIT_RATE_NAME, found.to_json())
