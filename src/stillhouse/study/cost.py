"""What a run costs in floating-point operations, by one documented rule.

``P_s`` and ``P_t`` are the parameters of student and teacher, embeddings included and tied ones counted
once, as ``result.json`` has them. A token costs ``2 P`` in a forward pass and ``4 P`` more in a backward
one, so a training run costs

    student = 6 P_s * trained tokens
    teacher = 2 P_t * trained tokens     in stages whose teacher runs beside the student

Steps on answers that the student wrote itself cost it ``2 P_s`` a token more. A DoReMi proxy costs ``4
P_s`` more: it scores each step before it takes it, and so does its reference, a model of its size. A
teacher that was captured into a cache, or wrote its answers beforehand, costs nothing in the run; what
its passes over the rows of those stages took (``2 P_t`` a token) are listed apart as ``preparation``,
because several runs share them. Stages on the same rows share a pass for the cache, and likewise one for answers. A teacher with another tokenizer is counted by the student's tokens. Left out are
attention's own products, the evaluations, TED's filters and the shorter backward pass of LoRA; an untied
input embedding is counted although a look-up does no arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.recipe import (
    DoReMiProxyObjective,
    GKDObjective,
    Recipe,
    SequenceKDObjective,
    SFTObjective,
    StageConfig,
)

FORWARD = 2.0
TRAIN = 6.0


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a run; ``preparation`` is not in ``total``."""

    student: float
    teacher: float
    preparation: float

    @property
    def total(self) -> float:
        return self.student + self.teacher

    def to_json(self) -> dict[str, float]:
        """Return the ``flops`` object of ``study_result.json``."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "total": self.total,
            "preparation": self.preparation,
        }


@dataclass(frozen=True)
class StageTokens:
    """Trained tokens of a stage; ``written`` of them stand in documents whose answers the student wrote.

    ``own_rows``: tokens of the stage's own training rows, once; None where it trains on the recipe's.
    """

    trained: int
    written: int
    own_rows: int | None = None


def student_flops_per_token(stage: StageConfig, student: int) -> float:
    """What one trained token of ``stage`` is going to cost a student of so many parameters."""
    written = stage.objective.on_policy_fraction if isinstance(stage.objective, GKDObjective) else 0.0
    return (_train(stage) + FORWARD * written) * student


def teacher_flops_per_token(recipe: Recipe, stage: StageConfig, teacher: int | None) -> float:
    """What one trained token of ``stage`` costs the teacher while it runs beside the student."""
    if teacher is None or recipe.teacher is None or recipe.teacher.source != "live":
        return 0.0
    return FORWARD * teacher if _compares(stage) else 0.0


def _train(stage: StageConfig) -> float:
    """Operations of a trained token by parameter; a DoReMi proxy and its reference read each token once more."""
    return TRAIN + (2 * FORWARD if isinstance(stage.objective, DoReMiProxyObjective) else 0.0)


def _compares(stage: StageConfig) -> bool:
    """True where every trained token needs the teacher's opinion."""
    return not isinstance(stage.objective, SFTObjective | SequenceKDObjective | DoReMiProxyObjective)


def run_flops(
    recipe: Recipe, tokens: Mapping[str, StageTokens], training_set: int, *, student: int, teacher: int | None
) -> Flops:
    """The cost of a run that trained on ``tokens`` by stage name; a stage that is not named was skipped.

    ``training_set``: tokens of the recipe's training rows, over which a prepared teacher passed once for
    all stages without rows of their own.
    """
    own = beside = 0.0
    for stage in recipe.stages:
        found = tokens.get(stage.name, StageTokens(0, 0))
        own += student * (_train(stage) * found.trained + FORWARD * found.written)
        beside += teacher_flops_per_token(recipe, stage, teacher) * found.trained
    prepared = FORWARD * (teacher or 0) * _prepared_tokens(recipe, tokens, training_set)
    return Flops(own, beside, prepared)


def _prepared_tokens(recipe: Recipe, tokens: Mapping[str, StageTokens], training_set: int) -> int:
    """Tokens that the teacher passed over before the run: captured, or as writer of answers."""
    cached = recipe.teacher is not None and recipe.teacher.source != "live"
    passes: dict[tuple[str, str], int] = {}
    for stage in recipe.stages:
        writes = isinstance(stage.objective, SequenceKDObjective)
        if stage.name not in tokens or not (writes or (cached and _compares(stage))):
            continue
        rows = tokens[stage.name].own_rows
        whose = "" if rows is None else stage.name
        passes[whose, "answers" if writes else "targets"] = training_set if rows is None else rows
    return sum(passes.values())
