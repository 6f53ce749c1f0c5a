"""What the run directories of a study add: learning curves, and answers of its arms to the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.report.charts import Chart, Figure, axis_title, base_layout
from stillhouse.report.study_arms import ArmKey, Arms, group_title
from stillhouse.report.study_data import StudyData
from stillhouse.report.study_marks import MAX_ARMS, MAX_GROUPS, NATS, some_sizes
from stillhouse.report.table import curve_table
from stillhouse.report.text import chart_label, number

MAX_SEEDS = 5
MAX_POINTS = 120
SAMPLES_PER_CELL = 3


def learning_charts(study: StudyData, arms: Arms) -> list[Chart]:
    """Validation NLL over optimizer steps at the smallest, the middle and the largest data size, a thin line per seed."""
    charts = []
    for group_place, group in enumerate(arms.groups[:MAX_GROUPS]):
        keys = arms.in_group(group)[:MAX_ARMS]
        for place, size in enumerate(some_sizes([cell for key in keys for cell in arms.cells(key)])):
            words = "" if size is None else f" with {size} rows" if size.isdecimal() else f" at size {size}"
            title = group_title(f"Validation NLL while training{words}", group)
            chart = _learning(f"learning-{group_place}-{place}", title, keys, size, study, arms)
            if chart is not None:
                charts.append(chart)
    return charts


def _learning(
    chart_id: str, title: str, keys: Sequence[ArmKey], size: str | None, study: StudyData, arms: Arms
) -> Chart | None:
    layout = base_layout(320)
    layout["xaxis"]["title"] = axis_title("optimizer step")
    layout["yaxis"]["title"] = axis_title(NATS)
    layout["hovermode"] = "closest"
    traces: list[Figure] = []
    curves: list[tuple[str, list[float], list[float]]] = []
    for key in keys:
        style = arms.style(key)
        by_seed = [points for points in _evaluations(key, size, study) if points]
        if not by_seed:
            continue
        for place, points in enumerate(by_seed):
            line = {"color": style.color, "width": 1.6, "dash": style.dash}
            traces.append(
                {"type": "scatter", "mode": "lines", "name": chart_label(style.name), "line": line}
                | {"x": list(points), "y": list(points.values()), "showlegend": place == 0, "legendgroup": str(key)}
                | {"opacity": 0.85 if len(by_seed) == 1 else 0.6}
            )
        curves.append((style.name, *_mean_curve(by_seed)))
    if not curves:
        return None
    numbers = curve_table("Validation NLL in nats per token, mean over seeds, by optimizer step.", "Step", curves)
    described = "; ".join(f"{name} from {number(y[0])} to {number(y[-1])}" for name, _, y in curves)
    figure = {"data": traces, "layout": layout}
    return Chart(
        chart_id, title, f"Line chart of validation NLL: {described}.", "One line for each seed.", figure, numbers
    )


def _evaluations(key: ArmKey, size: str | None, study: StudyData) -> list[dict[float, float]]:
    """Step to validation NLL, for each seed of a cell."""
    method, teacher, group = key
    rows = study.finished({"method": method, "teacher": teacher, "group": dict(group)}, size)
    found = []
    for row in rows[:MAX_SEEDS]:
        run = study.run(str(row["run"]))
        events = [] if run is None else run.evaluations
        every = max(1, -(-len(events) // MAX_POINTS))
        kept = [event for i, event in enumerate(events) if i % every == 0 or i == len(events) - 1]
        found.append({event["step"]: event["nll"] for event in kept if isinstance(event.get("nll"), int | float)})
    return found


def _mean_curve(by_seed: Sequence[dict[float, float]]) -> tuple[list[float], list[float]]:
    """The mean over seeds at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(points) for points in by_seed)) or by_seed[0])
    return steps, [sum(p[s] for p in by_seed if s in p) / sum(s in p for p in by_seed) for s in steps]


@dataclass(frozen=True)
class Sample:
    """One held-out prompt with the gold answer, and what each teacher and each arm's student answered."""

    size: str | None
    domain: str
    prompt: str
    gold: str | None
    students: tuple[tuple[str, str | None], ...]
    teachers: tuple[tuple[str, str | None], ...]


def samples(study: StudyData, arms: Arms) -> list[Sample]:
    """Answers to the same prompts side by side, at the smallest and the largest size, first seed of each cell."""
    found = []
    for group in arms.groups[:MAX_GROUPS]:
        keys = arms.in_group(group)[:MAX_ARMS]
        for size in some_sizes([cell for key in keys for cell in arms.cells(key)], limit=2):
            found += _samples_at(size, keys, study, arms)
    return found


def _samples_at(size: str | None, keys: Sequence[ArmKey], study: StudyData, arms: Arms) -> list[Sample]:
    answers = {key: _answers(key, size, study) for key in keys}
    prompts = list(dict.fromkeys(prompt for found in answers.values() for prompt in found))
    shared = sorted(prompts, key=lambda prompt: -sum(prompt in found for found in answers.values()))
    needed = min(2, sum(bool(found) for found in answers.values()))
    listed: list[Sample] = []
    for domain, prompt in shared:
        here = {key: found[domain, prompt] for key, found in answers.items() if (domain, prompt) in found}
        if len(here) < max(1, needed) or len(listed) == SAMPLES_PER_CELL:
            continue
        teachers = {
            f"Teacher {key[1]}" if key[1] is not None and arms.many_teachers else "Teacher": sample.get("teacher")
            for key, sample in here.items()
            if sample.get("teacher") is not None
        }
        students = tuple((arms.style(key).name, sample.get("student_after")) for key, sample in here.items())
        gold = next((sample.get("gold") for sample in here.values()), None)
        listed.append(Sample(size, domain, prompt, gold, students, tuple(teachers.items())))
    return listed


def _answers(key: ArmKey, size: str | None, study: StudyData) -> dict[tuple[str, str], dict[str, Any]]:
    """The samples of a cell's first seed that can be read, by domain and prompt."""
    method, teacher, group = key
    for row in study.finished({"method": method, "teacher": teacher, "group": dict(group)}, size):
        run = study.run(str(row["run"]))
        if run is not None and run.result is not None and run.result.get("samples"):
            return {(sample["domain"], sample["prompt"]): sample for sample in run.result["samples"]}
    return {}
