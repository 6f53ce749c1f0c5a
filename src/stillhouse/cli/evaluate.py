"""What ``stillhouse evaluate`` does: measure, print tables, write files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from stillhouse.errors import DataError, did_you_mean
from stillhouse.run_directory import write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from stillhouse.evaluation.anything import EvaluateResult
    from stillhouse.evaluation.plan import Metrics


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``stillhouse evaluate``."""

    limit_per_domain: int | None
    generate: int
    max_new_tokens: int
    max_seq_len: int
    precision: str
    metrics: str = "auto"
    execute_code: bool = False
    output: Path | None = None
    samples_out: Path | None = None
    compare_with: Path | None = None
    teacher: str | None = None


def evaluate_model_on(model: str, data: str, options: EvaluateOptions) -> None:
    """Score any model on any rows, print the numbers and write what was asked for."""
    metrics = parse_metrics(options.metrics, execute_code=options.execute_code)
    import torch

    from stillhouse.evaluation.anything import EvaluateRequest, evaluate_anything
    from stillhouse.training.precision import resolve_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    request = EvaluateRequest(
        model,
        data,
        metrics=metrics,
        limit_per_domain=options.limit_per_domain,
        generate=options.generate,
        max_new_tokens=options.max_new_tokens,
        max_seq_len=options.max_seq_len,
        execute_code=options.execute_code,
        teacher=options.teacher,
    )
    dtype = resolve_dtype(options.precision, device)
    result = evaluate_anything(request, dtype=dtype, device=device, base_dir=Path.cwd())
    console = Console()
    _print(result, f"{model} on {data}", console)
    if options.output is not None:
        write_json_atomic(options.output, result.to_json())
    if options.samples_out is not None:
        lines = [json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in result.assessment.items]
        write_text_atomic(options.samples_out, "".join(lines))
    if options.compare_with is not None:
        _print_comparison(result, options.compare_with, console)


def parse_metrics(text: str, *, execute_code: bool) -> Metrics:
    """Return ``auto`` or the names in a list separated by commas.

    Raises DataError for a name that is not known, and for ``code`` without leave to run code.
    """
    from typing import get_args

    from stillhouse.recipe import MetricName, RunMetricName

    if text == "auto":
        return "auto"
    known = [*get_args(RunMetricName), "code"]
    names: list[MetricName] = []
    for part in text.split(","):
        match = next((name for name in known if name == part.strip()), None)
        if match is None:
            raise DataError(
                f"--metrics: {part.strip()!r} is not known; give auto, or some of {', '.join(known)}."
                f"{did_you_mean(part.strip(), known)}"
            )
        names.append(match)
    if "code" in names and not execute_code:
        raise DataError("--metrics: `code` runs what the model wrote; add --execute-code to allow it")
    return tuple(names)


def _print(result: EvaluateResult, title: str, console: Console) -> None:
    likelihood = result.to_json()
    if likelihood["domains"]:
        console.print(_likelihood_table(likelihood, title))
    if likelihood["agreement"] is not None:
        console.print(_agreement_table(likelihood["agreement"], title))
    if likelihood["scores"]:
        console.print(_score_table(likelihood["scores"], title))
        console.print(
            "Intervals: 95 %, from 10,000 resamplings of the items (seed 0). They hold for this one model and say "
            "nothing about another training run.",
            highlight=False,
        )
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _likelihood_table(evaluation: dict[str, Any], title: str) -> Table:
    table = Table(title=title)
    for name in ("domain", "NLL", "perplexity", "bits/byte", "end of turn", "tokens", "documents"):
        table.add_column(name, justify="left" if name == "domain" else "right", no_wrap=name == "domain")
    for name, d in evaluation["domains"].items():
        numbers = (d["nll"], d["perplexity"], d["bits_per_byte"], d["end_of_turn_nll"])
        table.add_row(name, *map(_number, numbers), str(d["content_tokens"]), str(d["documents"]))
    table.add_section()
    table.add_row("macro average", _number(evaluation["nll"]), _number(evaluation["perplexity"]))
    return table


def _agreement_table(agreement: dict[str, Any], title: str) -> Table:
    table = Table(title=f"teacher beside {title}", caption="KL(teacher || model) in nats a token; same first token")
    for name in ("domain", "KL", "same first", "tokens"):
        table.add_column(name, justify="left" if name == "domain" else "right", no_wrap=name == "domain")
    for name, d in agreement["domains"].items():
        table.add_row(name, _number(d["forward_kl"]), f"{d['top1']:.0%}", str(d["content_tokens"]))
    table.add_section()
    table.add_row("macro average", _number(agreement["forward_kl"]), f"{agreement['top1']:.0%}")
    return table


def _score_table(scores: dict[str, Any], title: str) -> Table:
    table = Table(title=f"scores of {title}")
    table.add_column("score", no_wrap=True)
    for name in ("value", "95 % interval", "items"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, score in scores.items():
        low, high = score["interval"]
        table.add_row(name, _number(score["score"]), f"{low:.3f} to {high:.3f}", str(score["n"]))
    return table


def _print_comparison(result: EvaluateResult, other: Path, console: Console) -> None:
    from stillhouse.evaluation.pairing import compare_items

    table = Table(title=f"this model minus {other}, on the same rows")
    table.add_column("score", no_wrap=True)
    for name in ("difference", "95 % interval", "standard error", "items"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, paired in compare_items(result.assessment.items, other).items():
        low, high = paired.interval
        error = _number(paired.standard_error)
        table.add_row(name, f"{paired.delta:+.3f}", f"{low:+.3f} to {high:+.3f}", error, str(paired.n))
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
