"""What ``stillhouse lm-eval`` does: run the harness, print its numbers, write them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from stillhouse.run_directory import write_json_atomic

if TYPE_CHECKING:
    from stillhouse.evaluation.lm_eval_bridge import HarnessRequest


def run_tasks(model: str, request: HarnessRequest, *, precision: str, output: Path | None) -> None:
    """Run tasks of lm-evaluation-harness on a model, print a table and write the numbers as JSON."""
    import torch

    from stillhouse.evaluation.lm_eval_bridge import run_harness
    from stillhouse.training.precision import resolve_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(precision, device)
    found = run_harness(model, request, dtype=dtype, device=device, base_dir=Path.cwd())
    Console().print(_table(found, model))
    if output is not None:
        write_json_atomic(output, found)


def _table(found: dict[str, Any], model: str) -> Table:
    """One line a metric; the harness names them ``metric,filter``."""
    table = Table(title=f"lm-evaluation-harness on {model}")
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("value", "error", "rows"):
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    for task, numbers in found["results"].items():
        rows = str(found.get("n-samples", {}).get(task, {}).get("effective", "-"))
        for key, value in numbers.items():
            metric, _, filtered = key.partition(",")
            if filtered and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = numbers.get(f"{metric}_stderr,{filtered}")
                named = metric if filtered == "none" else f"{metric} ({filtered})"
                table.add_row(task, named, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else "-", rows)
    return table
