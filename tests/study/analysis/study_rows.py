"""Made-up studies whose true curves are known: SFT 1.80 + 8 D^-.35 and KD 1.84 + 3 D^-.30 (methods of section 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

SIZES = (1e4, 3e4, 1e5, 3e5, 9.39e5)
TEACHER_NLL = {"weak": 1.75, "strong": 1.50}


def sft(size: float) -> float:
    return 1.80 + 8 * size**-0.35


def kd(size: float) -> float:
    return 1.84 + 3 * size**-0.30


def result_of(nll: float, *, rows: float = 100, teacher_nll: float = 1.5, teacher_flops: float = 0, **more: Any) -> Any:
    """A RES object with two domains 0.1 nats below and above ``nll``."""
    domains = {"code": nll - 0.1, "math": nll + 0.1}
    teacher = {"code": teacher_nll - 0.1, "math": teacher_nll + 0.1}
    return {
        "nll": nll,
        "domains": domains,
        "perplexity_ratio": {d: math.exp(domains[d] - teacher[d]) for d in domains},
        "before_nll": 4.0,
        "teacher_nll": teacher_nll,
        "teacher_domains": teacher,
        "gap_closed": (4.0 - nll) / (4.0 - teacher_nll),
        "exact_match": None,
        "scores": {},
        "train_rows": rows,
        "train_tokens": rows * 50,
        "steps": 10,
        "tokens": rows * 50,
        "targets": rows * 20,
        "seconds": 2.0,
        "tokens_per_second": rows * 25,
        "flops": {"student": 6.0, "teacher": teacher_flops, "total": 6.0 + teacher_flops, "preparation": 0.0},
        "parameters": {"student": 10, "teacher": 100},
        "teacher_entropy": 1.0 if teacher_flops else None,
        "agreement": 0.5 if teacher_flops else None,
        **more,
    }


def row_of(labels: Mapping[str, str], seed: int, result: Any, status: str = "done") -> dict[str, Any]:
    run = f"runs/{'-'.join(labels.values())}-seed{seed}"
    error = "out of memory" if status == "failed" else None
    return {"labels": dict(labels), "seed": seed, "status": status, "run": run, "error": error, "result": result}


def study_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A study whose axes are those of its rows, in the order in which the labels appear."""
    axes = {axis: list(dict.fromkeys(r["labels"][axis] for r in rows)) for axis in (rows[0]["labels"] if rows else ())}
    return {"name": "made up", "axes": axes, "seeds": sorted({r["seed"] for r in rows}), "rows": list(rows)}


def sft_kd_study(
    *,
    sizes: Sequence[float] = SIZES,
    seeds: int = 3,
    noise: float = 0.0,
    pair_noise: float = 0.0,
    curves: Mapping[str, Callable[[float], float]] | None = None,
    rng_seed: int = 0,
) -> dict[str, Any]:
    """Axes method and size; ``noise`` is shared by the methods of a (size, seed) pair, ``pair_noise`` is not."""
    generator = np.random.default_rng(rng_seed)
    rows = []
    for seed in range(seeds):
        for size in sizes:
            shared = generator.normal(0, noise)
            for method, curve in (curves or {"sft": sft, "kd": kd}).items():
                nll = curve(size) + shared + generator.normal(0, pair_noise)
                flops = 0 if method == "sft" else 20
                rows.append(
                    row_of(
                        {"method": method, "size": f"{size:.0f}"}, seed, result_of(nll, rows=size, teacher_flops=flops)
                    )
                )
    return study_of(rows)
