"""SFT or KD, with how much data and which teacher: one study on the shared chat rows.

Students, data sizes, teachers and seeds form one grid of ordinary runs on `stillhouse study`. The pair is the own
small one of benchmarks/small_pair.py: two cores do not train SmolLM2 often enough. Students see at most a quarter
of the rows. The same-data teacher is the large model fine-tuned on the very rows of the student (so there is one for
every size and seed); the stronger teacher is the same model fine-tuned on all rows. Two stages: first the stronger teacher's
own answers to the prompts of the largest size, then KD on the human rows. All runs of one seed and size
share their rows and the order of them. Finished runs are kept: stop the command and run it again at will.

Parts, in order: `tune` (learning rates at two sizes, one seed), `teachers`, `students`; `all` does them all and
prints the study's findings. The last line is one JSON object, which is also written to --output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _studies import read_lines, read_result, rounded, run_study, write_lines

HERE = Path(__file__).resolve().parent
SHARED_DATA = Path(os.environ.get("STILLHOUSE_SHARED_DATA", HERE.parent.parent / "shared" / "data"))
RATES = ("5e-4", "1e-3", "2e-3")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/when_kd_helps"), help="folder of the runs")
    parser.add_argument("--pair", type=Path, default=Path("runs/small_pair"), help="folder of benchmarks/small_pair.py")
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "chat", help="folder DOMAIN/{train,test}.jsonl")
    parser.add_argument("--part", choices=("tune", "teachers", "students", "all"), default="all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="rows of each domain")
    parser.add_argument("--all-rows", type=int, default=512, help="rows of each domain that the stronger teacher sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--strong-epochs", type=float, default=2.0, help="passes of the stronger teacher")
    parser.add_argument("--sft-rate", default="1e-3", help="learning rate of SFT students (see part tune)")
    parser.add_argument("--kd-rate", default="1e-3", help="learning rate of KD students (see part tune)")
    parser.add_argument("--teacher-rate", default="5e-4", help="learning rate of the teachers")
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time, one thread each if more than one")
    parser.add_argument("--output", type=Path, default=None, help="also write the figures there")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder; give the shared chat set (or set STILLHOUSE_SHARED_DATA)")
    if max(options.sizes) * 4 > options.all_rows:
        parser.error("--all-rows: students may see at most a quarter of the rows")
    return options


def write_universe(options: argparse.Namespace) -> Path:
    """The rows of the study: the first ``all_rows`` of each domain, in one file per domain."""
    folder: Path = options.work / "rows"
    for path in sorted(options.data.glob("*/train.jsonl")):
        write_lines(folder / f"{path.parent.name}.jsonl", read_lines(path)[: options.all_rows])
    return folder


def base_recipe(
    options: argparse.Namespace, *, student: Path, rate: str, epochs: float | None = None
) -> dict[str, Any]:
    """What all runs share."""
    return {
        "student": {"path": str(student)},
        "data": {
            "train": [{"path": str(options.work / "rows"), "limit_per_domain": options.sizes[0]}],
            "validation": [{"path": str(options.data / "*" / "validation.jsonl")}],
            "validation_limit_per_domain": 8,
            "max_seq_len": 512,
        },
        "stages": [
            {
                "objective": {"type": "sft"},
                "optimisation": {
                    "budget": {"epochs": epochs or options.epochs},
                    "learning_rate": float(rate),
                    "batch_tokens": 2048,
                    "micro_batch_tokens": 4096,
                },
            }
        ],
        "evaluation": {
            "early_stopping_patience": 3,
            "test": [{"path": str(options.data / "*" / "test.jsonl")}],
            "test_limit_per_domain": 40,
            "generation": {"rows": 0, "samples": 2, "max_new_tokens": 32},
        },
        "checkpoints": {"keep": 1},
        "output": {"dir": "set-by-the-study"},
    }


def size_axis(sizes: Sequence[int], domains: int) -> dict[str, Any]:
    """Labels are rows in all."""
    return {str(n * domains): {"data.train.*.limit_per_domain": n} for n in sizes}


def run_teachers(options: argparse.Namespace, domains: int) -> Path:
    """Fine-tune the large model on every subset, and once on all rows; return the strong one's folder."""
    large = options.pair / "teacher" / "model"
    base = base_recipe(options, student=large, rate=options.teacher_rate)
    sizes = {"seeds": options.seeds, "axes": {"size": size_axis(options.sizes, domains)}}
    run_study(options.work, "teachers", base, sizes, jobs=options.jobs)
    base = base_recipe(options, student=large, rate=options.teacher_rate, epochs=options.strong_epochs)
    everything = {"seeds": [0], "axes": {"size": {"all": {"data.train.*.limit_per_domain": None}}}}
    strong = run_study(options.work, "strong", base, everything, jobs=options.jobs)
    return strong / "runs" / "all-seed0" / "model"


def two_stages(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The teacher's own answers to as many prompts as the largest size has, once; then KD on the human rows."""
    answered = [{"path": str(options.work / "rows"), "limit_per_domain": max(options.sizes)}]
    human = base_recipe(options, student=Path(), rate=options.kd_rate)["stages"][0]["optimisation"]
    return [
        {
            "name": "synthetic",
            "data": {"train": answered},
            "objective": {"type": "sequence_kd", "rollout": {"max_new_tokens": 64}},
            "optimisation": {**human, "budget": {"epochs": 1}},
        },
        {"name": "human", "objective": {"type": "kd"}, "optimisation": human},
    ]


def run_students(options: argparse.Namespace, domains: int, strong: Path) -> Path:
    """The grid of the question."""
    same = str(options.work / "teachers" / "runs" / "{size}-seed{seed}" / "model")
    study = {
        "seeds": options.seeds,
        "axes": {
            "size": size_axis(options.sizes, domains),
            "teacher": {"same-data": {"teacher": {"path": same}}, "all-rows": {"teacher": {"path": str(strong)}}},
            "method": {
                "sft": {"stages.0.optimisation.learning_rate": float(options.sft_rate)},
                "kd": {
                    "stages.0.objective": {"type": "kd"},
                    "stages.0.optimisation.learning_rate": float(options.kd_rate),
                },
                "two_stage": {"stages": two_stages(options)},
            },
        },
        # SFT has no teacher, so it runs once for both; the analysis sets it beside either. Two stages cost the
        # teacher's answers, so they run with one teacher at every other size.
        "exclude": [
            {"method": "sft", "teacher": "all-rows"},
            {"method": "two_stage", "teacher": "same-data"},
            *({"method": "two_stage", "size": str(n * domains)} for n in options.sizes[1::2]),
        ],
    }
    base = base_recipe(options, student=options.pair / "student" / "model", rate=options.sft_rate)
    return run_study(options.work, "students", base, study, jobs=options.jobs)


def tune(options: argparse.Namespace, domains: int, strong: Path) -> dict[str, Any]:
    """NLL by method, size and learning rate at the second and the last size, for one seed."""
    rates = {rate: {"stages.0.optimisation.learning_rate": float(rate)} for rate in RATES}
    study = {
        "seeds": [99],
        "axes": {
            "size": size_axis([options.sizes[1], options.sizes[-1]], domains),
            "method": {"sft": {}, "kd": {"stages.0.objective": {"type": "kd"}, "teacher": {"path": str(strong)}}},
            "rate": rates,
        },
    }
    base = base_recipe(options, student=options.pair / "student" / "model", rate=RATES[0])
    folder = run_study(options.work, "tune", base, study, jobs=options.jobs)
    rows = read_result(folder / "study_result.json")["rows"]
    return {"-".join(row["labels"].values()): row["result"]["nll"] for row in rows}


def main() -> None:
    """Run the wanted parts and print what came out."""
    options = parse(sys.argv[1:])
    started = time.monotonic()
    folder = write_universe(options)
    domains = len(list(folder.glob("*.jsonl")))
    strong = options.work / "strong" / "runs" / "all-seed0" / "model"
    report: dict[str, Any] = {"sizes": [n * domains for n in options.sizes], "seeds": options.seeds}
    if options.part in ("teachers", "all"):
        strong = run_teachers(options, domains)
    if options.part in ("tune", "all"):
        report["tune"] = tune(options, domains, strong)
    if options.part in ("students", "all"):
        study = run_students(options, domains, strong)
        report["analysis"] = read_result(study / "analysis.json")
    report = rounded({**report, "seconds": time.monotonic() - started})
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
