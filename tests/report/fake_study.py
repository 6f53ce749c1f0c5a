"""A made-up study with realistic numbers: three methods, five sizes, two teachers, three seeds, six domains."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fake_run import DOMAINS, environment, evaluation_line, recipe, result, step_line

from stillhouse.study.analysis import analyse

SIZES = ("64", "128", "256", "512", "1024")
METHODS = ("sft", "kd", "two-stage")
TEACHERS = ("same-data", "strong")
OFFSETS = (0.55, -0.42, 0.1, -0.2, 0.15, -0.18)
"""Of the domains from the mean; they sum to zero."""
FOLLOWING = ("ddk", "ddk_unsmoothed")
"""Methods whose mixture follows the gap between student and teacher."""
PATTERN = "runs/{method}-{size}-{teacher}-seed{seed}"


def nll_of(method: str, size: str, teacher: str) -> float:
    """KD wins with little data and fades; under the strong teacher it stays ahead."""
    rows = float(size)
    base = 1.55 + 3.4 * rows**-0.32
    if method == "sft":
        return base
    fade = 0.02 if teacher == "strong" else -0.045
    gain = (0.9 if method == "kd" else 1.05) * rows**-0.5 + fade
    return base - gain


def study_result(
    *,
    sizes: Sequence[str] = SIZES,
    methods: Sequence[str] = METHODS,
    teachers: Sequence[str] = TEACHERS,
    seeds: Sequence[int] = (0, 1, 2),
    domains: Sequence[str] = DOMAINS,
    status: Callable[[Mapping[str, str], int], str] = lambda labels, seed: "done",
    name: str = "When does distillation help on chat data?",
) -> dict[str, Any]:
    """The object of ``study_result.json``; ``status`` may make cells fail or stand open."""
    generator = np.random.default_rng(5)
    rows = []
    for seed in seeds:
        for size in sizes:
            shared = generator.normal(0, 0.01)
            for method in methods:
                for teacher in teachers:
                    labels = {"method": method, "size": size, "teacher": teacher}
                    own = 0.0 if method == "sft" else float(generator.normal(0, 0.012))
                    nll = nll_of(method, size, teacher) + shared + own
                    state = status(labels, seed)
                    rows.append(
                        {
                            "labels": labels,
                            "seed": seed,
                            "status": state,
                            "run": PATTERN.format(**labels, seed=seed),
                            "error": "loss is not finite at step 41; lower the learning rate"
                            if state == "failed"
                            else None,
                            "result": result_of(nll, labels, domains) if state == "done" else None,
                        }
                    )
    axes = {"method": list(methods), "size": list(sizes), "teacher": list(teachers)}
    return {"name": name, "axes": axes, "seeds": list(seeds), "rows": rows}


def result_of(nll: float, labels: Mapping[str, str], domains: Sequence[str]) -> dict[str, Any]:
    """A RES object."""
    rows = int(labels["size"])
    teacher_nll = 1.62 if labels["teacher"] == "same-data" else 1.44
    by_domain = {d: nll + o * (1 - 0.3 * (labels["method"] != "sft")) for d, o in zip(domains, OFFSETS, strict=True)}
    teacher = {d: teacher_nll + 0.5 * o for d, o in zip(domains, OFFSETS, strict=True)}
    student = 6 * 4.1e7 * rows * 210.0
    spent = 0.0 if labels["method"] == "sft" else 2 * 1.34e8 * rows * 210.0
    match = min(0.9, max(0.0, 0.95 - 0.3 * nll))
    return {
        "nll": nll,
        "domains": by_domain,
        "perplexity_ratio": {d: math.exp(by_domain[d] - teacher[d]) for d in domains},
        "before_nll": 3.1,
        "teacher_nll": teacher_nll,
        "teacher_domains": teacher,
        "gap_closed": (3.1 - nll) / (3.1 - teacher_nll),
        "exact_match": match,
        "scores": {"exact_match": match},
        "train_rows": rows,
        "train_tokens": rows * 70,
        "steps": rows // 4,
        "tokens": rows * 210,
        "targets": rows * 66,
        "seconds": rows * (0.11 if labels["method"] == "sft" else 0.17),
        "tokens_per_second": 1900.0 if labels["method"] == "sft" else 1230.0,
        "flops": {"student": student, "teacher": spent, "total": student + spent, "preparation": 0.0},
        "parameters": {"student": 41_000_000, "teacher": 134_515_008},
        "teacher_entropy": None if labels["method"] == "sft" else 1.3,
        "agreement": None if labels["method"] == "sft" else 0.71,
    }


def write_run(folder: Path, row: Mapping[str, Any], output: str, domains: Sequence[str] = DOMAINS) -> None:
    """The directory of a finished run whose curve ends at the row's NLL."""
    folder.mkdir(parents=True)
    labels, nlls = row["labels"], tuple(row["result"]["domains"].values())
    kind = "sft" if labels["method"] == "sft" else "kd"
    saved = recipe(kind, teacher=True)
    saved["output"]["dir"] = f"{output}/{row['run']}"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment()), encoding="utf-8")
    lines = [evaluation_line(step, tuple(domains), nlls) for step in range(0, 61, 5)]
    lines += [with_targets(step_line(step, kind == "kd"), domains) for step in range(1, 61)]
    value = result(kind, tuple(domains), teacher=True)
    if labels["method"] in FOLLOWING:
        drawn = interval_lines(domains)
        lines += drawn
        value["training"]["tokens"] = sum(d["drawn_tokens"] for line in drawn for d in line["domains"].values())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for sample in value["samples"]:
        sample["student_after"] += f" ({labels['method']}, {labels['size']} rows, teacher {labels['teacher']})"
    (folder / "result.json").write_text(json.dumps(value), encoding="utf-8")


def with_targets(line: dict[str, Any], domains: Sequence[str]) -> dict[str, Any]:
    """A step that trained on 10 targets of the first domain, 20 of the second and so on."""
    return {**line, "domains": {name: {"targets": 10.0 * i, "ce": 2.0} for i, name in enumerate(domains, start=1)}}


def interval_lines(domains: Sequence[str]) -> list[dict[str, Any]]:
    """Three intervals: the first domain is drawn with 0.5, 0.4, 0.3 as the student catches up with its teacher there."""
    lines = []
    for interval, step in enumerate((0, 20, 40)):
        first = 0.5 - 0.1 * interval
        weights = {name: first if i == 0 else (1 - first) / (len(domains) - 1) for i, name in enumerate(domains)}
        rows = {
            name: {"ratio": 3.0 - 0.5 * interval - 0.1 * i, "weight": weights[name], "passes": 0.5 * (interval + 1)}
            | {"drawn_tokens": round(10_000 * weights[name])}
            for i, name in enumerate(domains)
        }
        lines.append({"event": "mixture", "step": step, "stage": "main", "interval": interval, "domains": rows})
    return lines


def write_study(folder: Path, study: dict[str, Any], *, runs: bool = True, analysis: bool = True) -> Path:
    """A study's folder as ``stillhouse study`` leaves it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "study_result.json").write_text(json.dumps(study), encoding="utf-8")
    if analysis:
        (folder / "analysis.json").write_text(json.dumps(analyse(study, draws=200).to_json()), encoding="utf-8")
    if runs:
        for row in study["rows"]:
            if row["result"] is not None:
                write_run(folder / row["run"], row, f"studies/{folder.name}", list(row["result"]["domains"]))
    return folder
