"""``report.html`` of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stillhouse.report import charts
from stillhouse.report.charts import Chart, Series
from stillhouse.report.findings import domain_gap_closed, run_headline, worse_domains
from stillhouse.report.html import write_page
from stillhouse.report.methods import method_of
from stillhouse.report.mixture import mixture_section
from stillhouse.report.rundata import RunData, read_run
from stillhouse.report.scores import score_table

MODELS = (
    ("student_before", "student before", "@before"),
    ("student_after", "student after", "@student"),
    ("teacher", "teacher", "@teacher"),
)


def render_run_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory, finished or not, and return its path.

    Raises OutputError when the folder holds no run, a file of it is damaged, or it cannot be written.
    """
    run = read_run(run_dir)
    return write_page(
        run_dir / "report.html",
        "run.html.jinja",
        run=run,
        result=run.result,
        headline=run_headline(run),
        kind=_kind(run),
        domains=domain_table(run.result),
        detailed=detailed_table(run.result),
        scores=score_table(run.result, [(key, label) for key, label, _ in MODELS]),
        bars=_bars(run.result),
        mixture=mixture_section(run),
        training=_training_charts(run),
        warnings=[*run.notes, *(run.result["warnings"] if run.result else [])],
        rejection_reasons=_rejection_reasons(run.result),
        rejected_examples=[e for report in _reports(run.result) for e in report.get("rejected_examples", [])],
        commands=commands(run),
        facts=_facts(run.environment),
        recipe_text=yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True),
    )


def domain_table(result: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return a row per domain: NLL of the three models, share of the gap closed, teacher worse or not."""
    if result is None:
        return []
    evaluation = result["evaluation"]
    teacher, before, after = evaluation["teacher"], evaluation["student_before"], evaluation["student_after"]
    worse = worse_domains(teacher, after) if teacher else []
    rows = []
    for name, domain in after["domains"].items():
        teacher_nll = teacher["domains"].get(name, {}).get("nll") if teacher else None
        before_nll = before["domains"][name]["nll"]
        rows.append(
            {
                "domain": name,
                "tokens": domain["content_tokens"],
                "teacher": teacher_nll,
                "before": before_nll,
                "after": domain["nll"],
                "closed": domain_gap_closed(before_nll, domain["nll"], teacher_nll),
                "teacher_worse": name in worse,
            }
        )
    return rows


def detailed_table(result: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return a block per domain (and one for all) with every measure of every model."""
    if result is None:
        return []
    models = [(label, result["evaluation"][key]) for key, label, _ in MODELS if result["evaluation"][key]]
    names = list(result["evaluation"]["student_after"]["domains"])
    blocks = [{"domain": None, "rows": [_overall(label, model) for label, model in models]}]
    for name in names:
        rows = [_measures(label, model, name) for label, model in models if name in model["domains"]]
        blocks.append({"domain": name, "rows": rows})
    return blocks


def _overall(label: str, model: dict[str, Any]) -> dict[str, Any]:
    match = model["exact_match"]
    return {
        "model": label,
        "nll": model["nll"],
        "perplexity": model["perplexity"],
        "bits_per_byte": None,
        "end_of_turn": model["end_of_turn_nll"],
        "match": match,
    }


def _measures(label: str, model: dict[str, Any], name: str) -> dict[str, Any]:
    domain = model["domains"][name]
    match = (model["exact_match"] or {}).get("by_domain", {}).get(name)
    return {
        "model": label,
        "nll": domain["nll"],
        "perplexity": domain["perplexity"],
        "bits_per_byte": domain["bits_per_byte"],
        "end_of_turn": domain["end_of_turn_nll"],
        "match": match,
    }


def _bars(result: dict[str, Any] | None) -> Chart | None:
    if result is None:
        return None
    names = list(result["evaluation"]["student_after"]["domains"])
    series = []
    for key, label, color in MODELS:
        model = result["evaluation"][key]
        if model:
            series.append(Series(label, color, [model["domains"].get(n, {}).get("nll") for n in names]))
    return charts.domain_bars(names, series)


def _training_charts(run: RunData) -> list[Chart]:
    drawn = (
        charts.validation_chart(run.evaluations, _teacher_nll(run)),
        charts.loss_chart(run.steps),
        charts.gradient_chart(run.steps),
        charts.teacher_chart(run.steps),
        charts.agreement_chart(run.steps),
    )
    return [chart for chart in drawn if chart is not None]


def _teacher_nll(run: RunData) -> float | None:
    """The teacher's final NLL, where it was measured on the validation rows."""
    if run.result is None or run.recipe["evaluation"]["test"]:
        return None
    teacher: float | None = run.result["headline"]["teacher"]
    return teacher


def _kind(run: RunData) -> str:
    name = method_of(run.recipe)
    return name[0].upper() + name[1:]


def commands(run: RunData) -> list[str]:
    """Return the shell lines that repeat the run and look at its model, from where it was started."""
    output = run.recipe["output"]["dir"]
    version = run.environment.get("versions", {}).get("stillhouse")
    install = f"pip install stillhouse=={version}" if version else "pip install stillhouse"
    processes = run.environment.get("processes", 1)
    program = "stillhouse" if processes == 1 else f"torchrun --nproc-per-node {processes} --no-python stillhouse"
    return [
        install,
        f"{program} train {output}/recipe.yaml output.dir={output}-again",
        f"stillhouse report {output}",
    ]


def _reports(result: dict[str, Any] | None) -> list[dict[str, Any]]:
    return list(result["data"].values()) if result else []


def _rejection_reasons(result: dict[str, Any] | None) -> list[str]:
    """Reasons that at least one split has rows for."""
    reasons = [reason for report in _reports(result) for reason, rows in report.get("rejected", {}).items() if rows]
    return list(dict.fromkeys(reasons))


def _facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """The environment as label and value; nested names (versions) lose their prefix."""
    facts: list[tuple[str, str]] = []
    for key, value in environment.items():
        facts += _facts(value) if isinstance(value, dict) else [(key.replace("_", " "), str(value))]
    return facts
