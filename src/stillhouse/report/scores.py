"""Scores of generated and chosen answers, beside the likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.report.table import Table, table
from stillhouse.report.text import count, number

SCORES = {
    "exact_match": "Exact match",
    "multiple_choice": "Multiple choice",
    "rouge_l": "ROUGE-L F1",
    "chrf": "chrF",
    "ifeval_prompt_strict": "Instructions followed, all of a prompt (strict)",
    "ifeval_prompt_loose": "Instructions followed, all of a prompt (loose)",
    "ifeval_instruction_strict": "Instructions followed (strict)",
    "ifeval_instruction_loose": "Instructions followed (loose)",
    "token_ece": "Calibration error of tokens (ECE; lower is better)",
    "multiple_choice_norm": "Multiple choice, by length",
    "multiple_choice_ece": "Calibration error of choices (ECE; lower is better)",
}


def score_table(result: dict[str, Any] | None, models: Sequence[tuple[str, str]]) -> Table | None:
    """Return every score by model, with its interval; None where there is none.

    ``models``: (key in the result's ``evaluation``, words for it).
    """
    evaluation = {} if result is None else result["evaluation"]
    shown = [(label, evaluation[key].get("scores") or {}) for key, label in models if evaluation.get(key)]
    names = list(dict.fromkeys(name for _, scores in shown for name in scores))
    if not names:
        return None
    rows = []
    for name in names:
        found = [scores.get(name) for _, scores in shown]
        items = max(score["n"] for score in found if score is not None)
        rows.append([SCORES.get(name, name), count(items), *map(_cell, found)])
    columns = ["Score", "Items", *(label.capitalize() for label, _ in shown)]
    return table("Scores, each with the 95 % bootstrap interval over its items within this model.", columns, rows)


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    low, high = score["interval"]
    return f"{number(score['score'], 3)}\n{number(low, 3)} to {number(high, 3)}"
