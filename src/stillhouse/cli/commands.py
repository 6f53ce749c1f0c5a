"""What the commands do: call one function, print what it returns."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from stillhouse.errors import OutputError
from stillhouse.recipe_io import dump_recipe, load_recipe
from stillhouse.run_directory import RunDirectory, read_json, write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from stillhouse.training.run import RunOutcome

INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``stillhouse evaluate``."""

    limit_per_domain: int | None
    generate: int
    max_new_tokens: int
    max_seq_len: int
    precision: str


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
    return table


def evaluate_model_on(model: str, data: str, options: EvaluateOptions, output: Path | None) -> None:
    """Score any model on any rows and print the numbers."""
    from stillhouse.recipe import GenerationConfig
    from stillhouse.training.evaluating import evaluate_anything

    generation = GenerationConfig(rows=options.generate, max_new_tokens=options.max_new_tokens, samples=0)
    measured = evaluate_anything(
        model,
        data,
        base_dir=Path.cwd(),
        precision=options.precision,
        max_seq_len=options.max_seq_len,
        limit_per_domain=options.limit_per_domain,
        generation=generation,
    )
    evaluation = measured.evaluation.to_json()
    table = Table(title=f"{model} on {data}")
    for name in ("domain", "NLL", "perplexity", "bits/byte", "end of turn", "tokens", "documents"):
        table.add_column(name, justify="left" if name == "domain" else "right", no_wrap=name == "domain")
    for name, d in evaluation["domains"].items():
        numbers = (d["nll"], d["perplexity"], d["bits_per_byte"], d["end_of_turn_nll"])
        table.add_row(name, *map(_number, numbers), str(d["content_tokens"]), str(d["documents"]))
    table.add_section()
    table.add_row("macro average", _number(evaluation["nll"]), _number(evaluation["perplexity"]))
    console = Console()
    console.print(table)
    score = evaluation["exact_match"]
    if score is not None:
        console.print(f"exact match {score['score']:.3f} on {score['n']} generated rows", highlight=False)
    if output is not None:
        write_json_atomic(output, evaluation)


def write_report(run: Path, others: Sequence[Path], output: Path | None) -> None:
    """Write the page of one run, or of several side by side."""
    from stillhouse.report.comparison import render_comparison
    from stillhouse.report.page import render_run_report

    if others:
        runs = [run, *others]
        page = render_comparison(runs, [r.name for r in runs], output or Path("comparison.html"))
    else:
        page = render_run_report(run)
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
