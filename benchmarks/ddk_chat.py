"""DDK on instruction data: the domains of the shared chat rows, whose sizes differ by themselves.

DDK's paper mixes raw text. Here a domain is a kind of chat row (math, code, rewriting, ...) and its gap is measured on
assistant tokens alone. Teacher and student are the own small pair of benchmarks/small_pair.py; the teacher is
fine-tuned on the chat rows first (part `teacher`), so that it knows more than the student in every domain. All arms
start from the same student and see the same number of tokens, prompts included. `sft` and `kd` draw rows as they come,
`kd_equal` gives each domain the same share, `ddk` follows the gap on the validation rows; scores are taken on the test
rows. Finished runs are kept: stop the command and run it again at will. The last line is one JSON object, which is also
written to --output.
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

from _studies import read_lines, read_result, rounded, run_study

HERE = Path(__file__).resolve().parent
SHARED_DATA = Path(os.environ.get("STILLHOUSE_SHARED_DATA", HERE.parent.parent / "shared" / "data"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/ddk_chat"), help="folder of the runs")
    parser.add_argument("--pair", type=Path, default=Path("runs/small_pair"), help="folder of benchmarks/small_pair.py")
    parser.add_argument("--teacher", type=Path, default=None, help="a fine-tuned teacher, in place of training one")
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "chat", help="folder DOMAIN/{train,validation,test}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=300_000, help="training tokens of every run")
    parser.add_argument("--teacher-tokens", type=int, default=1_500_000)
    parser.add_argument("--interval", type=int, default=16, help="K, in steps of 2,048 tokens")
    parser.add_argument(
        "--driving-tokens",
        type=int,
        default=3000,
        help="held-out tokens a domain that drive DDK; answers are 3 to 5 %% of some domains' tokens, so that the few "
        "that cost 3 %% of so short a run would be noise",
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of all arms")
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time, one thread each if more than one")
    parser.add_argument("--output", type=Path, default=None, help="also write the figures there")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder; give the shared chat set (or set STILLHOUSE_SHARED_DATA)")
    return options


def base_recipe(options: argparse.Namespace, student: Path, tokens: int, rate: float) -> dict[str, Any]:
    """What all runs share."""
    return {
        "student": {"path": str(student)},
        "data": {
            "train": [{"path": str(options.data / "*" / "train.jsonl")}],
            "validation": [{"path": str(options.data / "*" / "validation.jsonl")}],
            "validation_limit_per_domain": 60,
            "max_seq_len": 512,
            "max_rejected_fraction": 0.2,  # prompts longer than that
        },
        "stages": [
            {
                "objective": {"type": "sft"},
                "optimisation": {
                    "budget": {"tokens": tokens},
                    "learning_rate": rate,
                    "batch_tokens": 2048,
                    "micro_batch_tokens": 4096,
                },
            }
        ],
        "evaluation": {
            "every_steps": 1000,
            "test": [{"path": str(options.data / "*" / "test.jsonl")}],
            "test_limit_per_domain": 60,
            "metrics": [],
            "generation": {"rows": 0, "samples": 0},
        },
        "checkpoints": {"every_steps": 1000, "keep": 1},
        "output": {"dir": "set-by-the-study"},
    }


def train_teacher(options: argparse.Namespace) -> Path:
    """The large model of the pair, fine-tuned on all chat rows."""
    if options.teacher is not None:
        found: Path = options.teacher
        return found
    base = base_recipe(options, options.pair / "teacher" / "model", options.teacher_tokens, 5e-4)
    return run_study(options.work, "teacher", base, {"seeds": [0]}, jobs=1) / "runs" / "seed0" / "model"


def arms(options: argparse.Namespace, teacher: Path) -> dict[str, dict[str, Any]]:
    """Changes of the base recipe."""
    # Equation 3 of DDK's paper: CE + 0.2 KL at T = 1.
    objective = {"type": "kd", "mixing": {"type": "additive", "gamma": 0.2}, "scale_t2": False}
    kd = {"teacher": {"path": str(teacher)}, "stages.0.objective": objective}

    def mixture(kind: str) -> dict[str, Any]:
        own = {"validation_tokens_per_domain": options.driving_tokens} if kind == "ddk" else {}
        return {"stages.0.mixture": {"type": kind, "interval_steps": options.interval, **own}}

    return {
        "sft": {"teacher": {"path": str(teacher)}},
        "kd": kd,
        "kd_equal": {**kd, **mixture("equal")},
        "ddk": {**kd, **mixture("ddk")},
    }


def summary(options: argparse.Namespace, study: Path) -> dict[str, Any]:
    """Perplexity ratios by arm and domain, their paired differences from KD, and DDK's weights over time."""
    from stillhouse.study.analysis.intervals import paired_interval, t_interval

    rows = read_result(study / "study_result.json")["rows"]
    table = {(row["labels"]["arm"], row["seed"]): row for row in rows if row["status"] == "done"}
    labels = list(dict.fromkeys(label for label, _ in table))
    report: dict[str, Any] = {"failed": [row["run"] for row in rows if row["status"] != "done"], "arms": {}}

    def ratios(label: str) -> dict[int, dict[str, float]]:
        return {s: table[label, s]["result"]["perplexity_ratio"] for s in options.seeds if (label, s) in table}

    def macro(label: str) -> dict[int, float]:
        return {seed: sum(found.values()) / len(found) for seed, found in ratios(label).items()}

    for label in labels:
        domains = next(iter(ratios(label).values()))
        arm: dict[str, Any] = {
            "macro_ratio": vars(t_interval(list(macro(label).values()))),
            "macro_nll": vars(t_interval([table[label, s]["result"]["nll"] for s in macro(label)])),
            "domain_ratio": {d: vars(t_interval([r[d] for r in ratios(label).values()])) for d in domains},
        }
        difference = paired_interval(macro(label), macro("kd")) if label != "kd" else None
        arm["minus_kd"] = None if difference is None else vars(difference)
        report["arms"][label] = arm
    run = study / table["ddk", options.seeds[0]]["run"]
    result = read_result(run / "result.json")
    report["overhead"] = [read_result(study / table["ddk", s]["run"] / "result.json")["mixture"] for s in options.seeds]
    teacher, before = (result["evaluation"][name]["domains"] for name in ("teacher", "student_before"))
    report["before_ratio"] = {d: 2.718281828459045 ** (before[d]["nll"] - teacher[d]["nll"]) for d in teacher}
    report["rows"] = {d: v["documents"] for d, v in result["data"]["train"].get("domains", {}).items()}
    events = (json.loads(line) for line in read_lines(run / "metrics.jsonl"))
    report["mixture"] = [
        {"step": event["step"], "weights": {d: v["weight"] for d, v in event["domains"].items()}}
        for event in events
        if event["event"] == "mixture"
    ]
    return report


def main() -> None:
    """Run what is left and print what came out."""
    options = parse(sys.argv[1:])
    started = time.monotonic()
    teacher = train_teacher(options)
    base = base_recipe(options, options.pair / "student" / "model", options.tokens, options.rate)
    study = run_study(
        options.work,
        "arms",
        base,
        {"seeds": options.seeds, "axes": {"arm": arms(options, teacher)}},
        jobs=options.jobs,
    )
    report = {"tokens": options.tokens, "K": options.interval, "seeds": options.seeds, **summary(options, study)}
    report = rounded({**report, "seconds": time.monotonic() - started})
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
