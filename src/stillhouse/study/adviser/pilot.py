"""The pilot: SFT and KD on small nested draws of the user's rows, as an ordinary study.

It differs from the recipe it stands for, and every difference is listed as an assumption.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import RecipeError
from stillhouse.recipe import Budget, ForwardKL, KDObjective, ProportionalMixture, Recipe
from stillhouse.run_directory import write_text_atomic

if TYPE_CHECKING:
    from stillhouse.data.rows import Row

MIN_STEPS = 8
"""Fewer optimizer steps than this show the warm-up and nothing else."""
SIZES, RATIO = 5, 3.0
"""Up to so many sizes, each so many times the next smaller one."""
SHARE = 0.1
"""The largest pilot size as a share of the full one: nothing is predicted further than tenfold."""
BASE_NAME, STUDY_NAME = "base.yaml", "study.yaml"


@dataclass(frozen=True)
class Amount:
    """What the full run would train on: rows by source of ``data.train``, and documents and tokens in all."""

    source_rows: tuple[int, ...]
    documents: int
    tokens: int

    @property
    def rows(self) -> int:
        """Rows of all sources."""
        return sum(self.source_rows)


def pilot_sizes(amount: Amount, *, epochs: float, batch_tokens: int) -> tuple[int, ...]:
    """Nested sizes in rows, ascending: a tenth of the data and down by thirds, as long as a run has ``MIN_STEPS``.

    Data too small for that gets larger shares, up to a half. Raises RecipeError where not even two
    sizes have enough steps.
    """
    smallest = math.ceil(MIN_STEPS * batch_tokens * amount.rows / (amount.tokens * epochs))
    largest = max(amount.rows * SHARE, min(amount.rows / 2, smallest * RATIO**2))
    sizes = [round(largest / RATIO**k) for k in range(SIZES) if round(largest / RATIO**k) >= smallest]
    if len(sizes) < 2:
        steps = amount.tokens * epochs / batch_tokens
        raise RecipeError(
            f"data.train: {amount.rows} rows make only {steps:.0f} optimizer steps, too few for a pilot on a part of them; "
            "train the recipe with `objective: {type: sft}` and as it is, and compare the two"
        )
    return tuple(reversed(sizes))


def pilot_epochs(recipe: Recipe, tokens: int) -> float:
    """The recipe's first stage as epochs over its training set: what every pilot size gets (equal epochs)."""
    optimisation = recipe.stages[0].optimisation
    budget = optimisation.budget
    limits = [
        budget.epochs,
        None if budget.steps is None else budget.steps * optimisation.batch_tokens / tokens,
        None if budget.tokens is None else budget.tokens / tokens,
    ]
    return min(limit for limit in limits if limit is not None)


def pilot_objective(recipe: Recipe) -> KDObjective:
    """The recipe's own supervised KD, or the default one where it has none."""
    found = [stage.objective for stage in recipe.stages if isinstance(stage.objective, KDObjective)]
    return found[0] if found else KDObjective(type="kd")


def pilot_recipe(
    recipe: Recipe, *, folder: Path, student: str | None, validation: Sequence[Path], epochs: float
) -> tuple[dict[str, Any], list[str]]:
    """Return the pilot's base recipe as a mapping, and what in it differs from ``recipe``.

    ``student`` is the folder of a student that was pruned once for all runs; ``validation`` files hold the
    rows that were split off, so that all sizes are measured on the same ones.
    """
    assert recipe.teacher is not None
    objective, notes = pilot_objective(recipe), []
    stage = recipe.stages[0].model_copy(
        update={
            "name": "main",
            "data": None,
            "optimizer": "fresh",
            "objective": objective,
            "mixture": ProportionalMixture(),
            "optimisation": recipe.stages[0].optimisation.model_copy(update={"budget": Budget(epochs=epochs)}),
        }
    )
    data = recipe.model_copy(update={"stages": (stage,)}).model_dump(mode="json")
    if len(recipe.stages) > 1 or recipe.stages[0].data is not None:
        notes.append(
            "The pilot trains one stage on data.train; the recipe's further stages and their data are not rehearsed."
        )
    if not any(s.objective == objective for s in recipe.stages):
        notes.append("The recipe has no supervised KD, so the pilot's is the default one (forward KL, half and half).")
    if not isinstance(recipe.stages[0].mixture, ProportionalMixture):
        notes.append("The pilot draws domains in proportion to their data; the recipe's mixture is not rehearsed.")
    if recipe.teacher.source == "live":
        codec = {"type": "sampled"} if isinstance(objective.divergence, ForwardKL) else {"type": "topk_ghost", "k": 32}
        data["teacher"]["source"] = "cache"
        data["teacher"]["cache"] = {
            "dir": str(folder / "targets"),
            "codec": codec,
            "temperature": objective.temperature,
        }
        notes.append(
            f"The pilot's students learn from cached targets (codec {codec['type']}), the full run from live ones."
        )
    if student is not None:
        data["student"] = {"type": "pretrained", "path": student, "lora": data["student"]["lora"]}
    if validation:
        data["data"]["validation"] = [{"path": str(path), "format": _format_of(path)} for path in validation]
    data["evaluation"].update(early_stopping_patience=None, every_steps=None)
    data["evaluation"]["generation"].update(rows=0, samples=0)
    data["checkpoints"].update(every_steps=None, keep=1)
    data["output"] = {"dir": str(folder / "unused")}
    notes.append(f"Every pilot size trains for {epochs:g} epochs, as the full run's first stage does.")
    return data, notes


def pilot_study(
    sizes: Sequence[int], amount: Amount, *, folder: Path, seeds: Sequence[int], objective: KDObjective, jobs: int
) -> dict[str, Any]:
    """The pilot as a study file: each size drawn from all sources in proportion, smaller ones within larger ones."""
    shares = [rows / amount.rows for rows in amount.source_rows]
    return {
        "name": "adviser's pilot",
        "base": BASE_NAME,
        "output": str(folder),
        "seeds": list(seeds),
        "jobs": jobs,
        "axes": {
            "size": {
                str(size): {f"data.train.{i}.limit": max(1, round(size * share)) for i, share in enumerate(shares)}
                for size in sizes
            },
            "method": {
                "sft": {"stages.0.objective": {"type": "sft"}},
                "kd": {"stages.0.objective": objective.model_dump(mode="json")},
            },
        },
    }


def write_held_out(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write rows as JSONL, a file for each format, and return the files. The domain stands in every row."""
    by_format: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        common = {"id": row.id, "domain": row.domain} | ({} if row.answer is None else {"answer": row.answer})
        if row.text is not None:
            by_format.setdefault("text", []).append({**common, "text": row.text})
        elif row.prompt is not None:
            by_format.setdefault("prompt_completion", []).append(
                {**common, "prompt": row.prompt, "completion": row.completion}
            )
        else:
            messages = [{"role": m.role, "content": m.content} for m in row.messages or ()]
            by_format.setdefault("messages", []).append({**common, "messages": messages})
    files = []
    for name, records in by_format.items():
        path = folder / f"held_out.{name}.jsonl"
        write_text_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        files.append(path)
    return files


def _format_of(path: Path) -> str:
    return path.name.split(".")[1]
