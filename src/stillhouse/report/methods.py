"""What the objectives of a recipe are called in pages and model cards."""

from __future__ import annotations

from typing import Any

METHODS = {
    "sft": "supervised fine-tuning",
    "kd": "knowledge distillation",
    "gkd": "on-policy distillation",
    "sequence_kd": "sequence-level distillation",
    "cross_tokenizer": "distillation across tokenizers",
    "ted": "task-aware layer-wise distillation",
    "doremi_proxy": "group-DRO training of a DoReMi proxy",
}
WITHOUT_TEACHER = frozenset({"sft", "doremi_proxy"})


def method_of(recipe: dict[str, Any]) -> str:
    """Return what was done, stage after stage, of a dumped recipe: ``knowledge distillation``."""
    names = [METHODS[stage["objective"]["type"]] for stage in recipe["stages"]]
    return " then ".join(name for i, name in enumerate(names) if i == 0 or name != names[i - 1])


def is_distilled(recipe: dict[str, Any]) -> bool:
    """True when a teacher had a part in any stage's loss or rows."""
    return any(stage["objective"]["type"] not in WITHOUT_TEACHER for stage in recipe["stages"])
