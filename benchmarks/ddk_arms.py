"""DDK beside its baselines and ablations on plain text by domain, at one token budget.

Seven English domains of the shared corpora. The corpora are equal in size, so the arms' training rows are cut to a
skew of 8:1 in steps of 8^(1/6): wiki, web, books, stackexchange, code, arxiv, math. The pair is the own small one of
benchmarks/small_pair.py; its student is pre-trained afresh on a skewed mixture, so that its lag behind the teacher
differs between domains (the ratios before training are printed). Every arm starts from it and sees the same number
of tokens. DoReMi's reference and proxy are trained from the random student, per seed. Scores come from held-out
documents that no mixture has looked at. Every run is an ordinary one of `stillhouse study`: finished runs are kept,
so stop the command and run it again at will. The last line is one JSON object, which is also written to --output.
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
DOMAINS = ("wiki", "web", "books", "stackexchange", "code", "arxiv", "math")
"""From the most rows to an eighth of them."""
PRETRAINING_WEIGHTS = dict(zip(DOMAINS, (0.3, 0.25, 0.2, 0.13, 0.06, 0.03, 0.03), strict=True))
ROWS, SKEW = 1200, 8.0
ARMS = ("cpt", "cpt_doremi", "kd", "reverse_kl", "ted", "ddk", "ddk_unsmoothed", "ddk_equal")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/ddk_arms"), help="folder of the runs")
    parser.add_argument("--pair", type=Path, default=Path("runs/small_pair"), help="folder of benchmarks/small_pair.py")
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "corpora", help="folder DOMAIN/{train,validation}")
    parser.add_argument("--part", choices=("student", "tune", "arms", "ablation", "all"), default="all")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=400_000, help="training tokens of every run")
    parser.add_argument("--student-tokens", type=int, default=1_500_000, help="pre-training tokens of the student")
    parser.add_argument("--interval", type=int, default=16, help="K, in steps of --batch-tokens")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of all arms")
    parser.add_argument("--ted-weight", type=float, default=0.1, help="weight of TED's MSE (see part tune)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time, one thread each if more than one")
    parser.add_argument("--output", type=Path, default=None, help="also write the figures there")
    options = parser.parse_args(arguments)
    if not (options.data / DOMAINS[0]).is_dir():
        parser.error(f"--data {options.data}: no corpora there; give the shared ones (or set STILLHOUSE_SHARED_DATA)")
    return options


def write_rows(options: argparse.Namespace) -> dict[str, int]:
    """Write the skewed training rows, and held-out rows in two halves that share no document; rows by domain."""
    counts = {}
    for number, domain in enumerate(DOMAINS):
        train = read_lines(options.data / domain / "train.jsonl")
        counts[domain] = round(ROWS / SKEW ** (number / (len(DOMAINS) - 1)))
        # Evenly spaced, so that every document of the domain is represented.
        chosen = [train[i * len(train) // counts[domain]] for i in range(counts[domain])]
        write_lines(options.work / "rows" / f"{domain}.jsonl", chosen)
        held_out = read_lines(options.data / domain / "validation.jsonl")
        documents = list(dict.fromkeys(json.loads(line)["doc"] for line in held_out))
        first = set(documents[: len(documents) // 2])
        halves: tuple[list[str], list[str]] = ([], [])
        for line in held_out:
            halves[json.loads(line)["doc"] not in first].append(line)
        if not all(halves):  # one document only: its pieces are shared out instead
            halves = (held_out[: len(held_out) // 2], held_out[len(held_out) // 2 :])
        for name, lines in zip(("driving", "scoring"), halves, strict=True):
            write_lines(options.work / name / f"{domain}.jsonl", lines)
    return counts


def base_recipe(options: argparse.Namespace, student: Path, tokens: int, rows: str) -> dict[str, Any]:
    """What all runs share."""
    return {
        "student": {"path": str(student)},
        "data": {
            "train": [{"path": rows}],
            "validation": [{"path": str(options.work / "driving")}],
            "validation_limit_per_domain": 40,
            "max_seq_len": 512,
        },
        "stages": [
            {
                "objective": {"type": "sft"},
                "mixture": {"type": "proportional", "interval_steps": options.interval},
                "optimisation": {
                    "budget": {"tokens": tokens},
                    "learning_rate": options.rate,
                    "batch_tokens": options.batch_tokens,
                    "micro_batch_tokens": 4096,
                },
            }
        ],
        "evaluation": {
            "every_steps": 1000,
            "test": [{"path": str(options.work / "scoring")}],
            "test_limit_per_domain": 60,
            "generation": {"rows": 0, "samples": 0},
        },
        "checkpoints": {"every_steps": 1000, "keep": 1},
        "output": {"dir": "set-by-the-study"},
    }


def pretrain_student(options: argparse.Namespace) -> Path:
    """A student that has seen much prose and little LaTeX and code."""
    rows = str(options.data / "*" / "train.jsonl")
    base = base_recipe(options, options.pair / "student_base", options.student_tokens, rows)
    base["data"]["train"] = [{"path": str(options.data / d / "train.jsonl"), "domain": d} for d in DOMAINS]
    stage = base["stages"][0]
    stage["mixture"] = {"type": "fixed", "weights": PRETRAINING_WEIGHTS, "interval_steps": 50}
    stage["optimisation"] |= {"learning_rate": 3e-3, "batch_tokens": 4096, "weight_decay": 0.1}
    return run_study(options.work, "student", base, {"seeds": [0]}, jobs=options.jobs) / "runs" / "seed0" / "model"


def _kd(**fields: Any) -> dict[str, Any]:
    """Equation 3 of the paper: CE + 0.2 KL at T = 1."""
    mixing = {"type": "additive", "gamma": 0.2}
    return {"stages.0.objective": {"type": "kd", "mixing": mixing, "scale_t2": False, **fields}}


def _mixture(options: argparse.Namespace, kind: str, **fields: Any) -> dict[str, Any]:
    return {"stages.0.mixture": {"type": kind, "interval_steps": options.interval, **fields}}


def arms(options: argparse.Namespace, teacher: Path) -> dict[str, dict[str, Any]]:
    """The eight arms as changes of the base recipe."""
    taught = {"teacher": {"path": str(teacher)}}
    weights = str(options.work / "doremi_proxy" / "runs" / "proxy-seed{seed}")
    ted = {"type": "ted", "mixing": {"type": "additive", "gamma": 0.2}, "temperature": 1.0, "scale_t2": False}
    ted |= {"mse_weight": options.ted_weight, "filter_steps": 20}
    every = {
        "cpt": taught,  # the teacher is only measured
        "cpt_doremi": {**taught, **_mixture(options, "doremi", weights_from=weights)},
        "kd": {**taught, **_kd()},
        "reverse_kl": {**taught, **_kd(divergence={"type": "reverse_kl"})},
        "ted": {**taught, "stages.0.objective": ted},
        "ddk": {**taught, **_kd(), **_mixture(options, "ddk")},
        "ddk_unsmoothed": {**taught, **_kd(), **_mixture(options, "ddk_unsmoothed")},
        "ddk_equal": {**taught, **_kd(), **_mixture(options, "equal")},
    }
    return {name: every[name] for name in options.arms}


def tune_ted(options: argparse.Namespace, base: dict[str, Any], teacher: Path) -> dict[str, float]:
    """Held-out NLL by the weight of TED's MSE, which the paper of DDK does not give, for a seed of its own."""
    own = argparse.Namespace(**{**vars(options), "arms": ["ted"]})
    labels = {}
    for weight in (0.001, 0.01, 0.1, 1.0):
        own.ted_weight = weight
        labels[f"ted{weight}"] = arms(own, teacher)["ted"]
    study = run_study(options.work, "tune_ted", base, {"seeds": [99], "axes": {"method": labels}}, jobs=options.jobs)
    rows = read_result(study / "study_result.json")["rows"]
    return {row["labels"]["method"]: row["result"]["nll"] for row in rows}


def run_doremi(options: argparse.Namespace) -> None:
    """Reference and proxy, from the random student on the arms' rows, per seed."""
    base = base_recipe(options, options.pair / "student_base", options.tokens, str(options.work / "rows"))
    base["stages"][0]["optimisation"]["learning_rate"] = 3e-3
    run_study(options.work, "doremi_reference", base, {"seeds": options.seeds}, jobs=options.jobs)
    reference = str(options.work / "doremi_reference" / "runs" / "seed{seed}")
    proxy = {"stages.0.objective": {"type": "doremi_proxy", "reference": reference}}
    run_study(
        options.work,
        "doremi_proxy",
        base,
        {"seeds": options.seeds, "axes": {"step": {"proxy": proxy}}},
        jobs=options.jobs,
    )


def summary(options: argparse.Namespace, study: Path, labels: Sequence[str], axis: str) -> dict[str, Any]:
    """Ratios, paired differences and overheads of a finished study."""
    from stillhouse.study.analysis.intervals import paired_interval, t_interval

    rows = read_result(study / "study_result.json")["rows"]
    table = {(row["labels"][axis], row["seed"]): row for row in rows if row["status"] == "done"}
    report: dict[str, Any] = {"failed": [row for row in rows if row["status"] != "done"], "arms": {}}

    def macro(label: str) -> dict[int, float]:
        found = {seed: table[label, seed]["result"]["perplexity_ratio"] for seed in options.seeds}
        return {seed: sum(r.values()) / len(r) for seed, r in found.items()}

    def ratio(label: str, domain: str) -> dict[int, float]:
        return {seed: table[label, seed]["result"]["perplexity_ratio"][domain] for seed in options.seeds}

    for label in labels:
        results = [table[label, seed]["result"] for seed in options.seeds]
        arm: dict[str, Any] = {
            "macro_ratio": vars(t_interval(list(macro(label).values()))),
            "macro_nll": vars(t_interval([r["nll"] for r in results])),
            "domain_ratio": {d: vars(t_interval([r["perplexity_ratio"][d] for r in results])) for d in DOMAINS},
            "seconds": [r["seconds"] for r in results],
            "flops": [r["flops"]["total"] for r in results],
        }
        for other in ("kd", "cpt"):
            if other in labels and other != label:
                difference = paired_interval(macro(label), macro(other))
                arm[f"minus_{other}"] = None if difference is None else vars(difference)
                by_domain = {d: paired_interval(ratio(label, d), ratio(other, d)) for d in DOMAINS}
                arm[f"domain_minus_{other}"] = {d: v and vars(v) for d, v in by_domain.items()}
        runs = [study / table[label, seed]["run"] for seed in options.seeds]
        arm["overhead"] = [_overhead(run) for run in runs]
        arm["mixture"] = [_mixture_events(runs[0])]
        report["arms"][label] = arm
    first = next(iter(table.values()))
    teacher = first["result"]["teacher_domains"]
    result = read_result(study / first["run"] / "result.json")
    before = result["evaluation"]["student_before"]["domains"]
    report["teacher_nll"] = teacher
    report["before_ratio"] = {d: 2.718281828459045 ** (before[d]["nll"] - teacher[d]) for d in DOMAINS}
    return report


def _overhead(run: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = read_result(run / "result.json").get("mixture")
    return found


def _mixture_events(run: Path) -> list[dict[str, Any]]:
    """What the picture of a moving mixture needs; nothing where the weights stand still."""
    events = [line for line in map(json.loads, read_lines(run / "metrics.jsonl")) if line["event"] == "mixture"]
    if not any(d["ratio"] is not None for event in events for d in event["domains"].values()):
        return []
    kept = ("weight", "ratio", "drawn_tokens", "passes")
    return [
        {
            "step": event["step"],
            "interval": event["interval"],
            "domains": {name: {key: d[key] for key in kept} for name, d in event["domains"].items()},
        }
        for event in events
    ]


def ablation(options: argparse.Namespace, base: dict[str, Any], teacher: Path) -> dict[str, Any]:
    """DDK with other intervals (the paper's Table 6) and other alphas (no table there; Table 5 is alpha on or off)."""
    variants: dict[str, dict[str, Any]] = {}
    for k in (4, 8, 16, 32, 64):
        variants[f"K{k}"] = {"stages.0.mixture": {"type": "ddk", "interval_steps": k}}
    for alpha in (0.0, 0.25, 0.75, 1.0):
        variants[f"alpha{alpha}"] = _mixture(options, "ddk", alpha=alpha)
    axes = {"variant": {name: {"teacher": {"path": str(teacher)}, **_kd(), **v} for name, v in variants.items()}}
    study = run_study(options.work, "ablation", base, {"seeds": options.seeds, "axes": axes}, jobs=options.jobs)
    return summary(options, study, list(variants), "variant")


def main() -> None:
    """Run the wanted parts and print what came out."""
    options = parse(sys.argv[1:])
    started = time.monotonic()
    report: dict[str, Any] = {"rows": write_rows(options), "seeds": options.seeds, "tokens": options.tokens}
    report |= {"K": options.interval, "batch_tokens": options.batch_tokens}
    student = pretrain_student(options)
    teacher = options.pair / "teacher" / "model"
    base = base_recipe(options, student, options.tokens, str(options.work / "rows"))
    if options.part in ("tune", "all"):
        report["tune_ted"] = tune_ted(options, base, teacher)
    if options.part in ("arms", "all"):
        if "cpt_doremi" in options.arms:
            run_doremi(options)
        fields = {"seeds": options.seeds, "axes": {"method": arms(options, teacher)}}
        study = run_study(options.work, "arms", base, fields, jobs=options.jobs)
        report |= summary(options, study, options.arms, "method")
        ratios = report["before_ratio"]
        print({d: round(r, 2) for d, r in ratios.items()}, "max/min", max(ratios.values()) / min(ratios.values()))
    if options.part in ("ablation", "all"):
        report["ablation"] = ablation(options, base, teacher)
    report["seconds"] = time.monotonic() - started
    if options.output is not None:
        options.output.write_text(json.dumps(rounded(report)) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
