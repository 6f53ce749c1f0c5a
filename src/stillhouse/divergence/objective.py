"""What is minimised: weights, divergence and temperature, and what one evaluation of it returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.rows import Statistics
from stillhouse.divergence.table import build_divergence
from stillhouse.recipe import DistillationObjective, ObjectiveConfig


@dataclass(frozen=True)
class ObjectiveTerms:
    """ce_weight * CE + kd_weight * T^2 * D(teacher, student; T), in nats per target token.

    CE always reads the logits at temperature 1. The factor T^2 is there if ``scale_t2``.
    ``vocab_size`` is V*, the number of real token ids: both heads are cut to it before the
    softmax, so padding rows never take mass.
    """

    ce_weight: float
    kd_weight: float
    divergence: Divergence | None
    temperature: float
    scale_t2: bool
    vocab_size: int

    def __post_init__(self) -> None:
        assert self.temperature > 0
        assert self.ce_weight > 0 or self.kd_weight > 0
        assert self.kd_weight == 0 or self.divergence is not None

    @property
    def kd_scale(self) -> float:
        """T^2, or 1 without ``scale_t2``."""
        return self.temperature**2 if self.scale_t2 else 1.0

    @classmethod
    def from_config(cls, config: ObjectiveConfig, vocab_size: int) -> ObjectiveTerms:
        """Read a recipe's objective; supervised fine-tuning has no divergence."""
        ce_weight, kd_weight = config.weights
        if not isinstance(config, DistillationObjective):
            return cls(ce_weight, kd_weight, None, 1.0, True, vocab_size)
        divergence = build_divergence(config.divergence)
        return cls(ce_weight, kd_weight, divergence, config.temperature, config.scale_t2, vocab_size)


@dataclass(frozen=True)
class ObjectiveOutput:
    """The objective at N target tokens. All but ``loss`` is detached; float32, or float64 for float64 inputs.

    loss: scalar with a graph, (ce_weight * sum ce + kd_weight * sum kd) / normaliser.
    ce [N]: cross-entropy at temperature 1.
    kd [N]: divergence at the objective's temperature, T^2 included if ``scale_t2``; None without a
        teacher or a divergence.
    teacher_nll [N], teacher_entropy [N]: at temperature 1; None without a teacher.
    top1_agreement [N] bool: some id is the largest of both models (so a tie agrees with either of
        its ids); None without a teacher.
    ce_grad_square, kd_grad_square: scalars, the sum over tokens and vocabulary of the squared weighted
        gradients at the student's final logits, before the normaliser; 0 where a term has no weight
        or no gradient was asked for.
    mse: scalar, TED's hidden-state loss divided by the normaliser, before its weight; None elsewhere.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor | None
    teacher_nll: Tensor | None
    teacher_entropy: Tensor | None
    top1_agreement: Tensor | None
    ce_grad_square: Tensor
    kd_grad_square: Tensor
    mse: Tensor | None = None


def summarise(stats: Statistics, terms: ObjectiveTerms, normaliser: float | Tensor) -> ObjectiveOutput:
    """Sum the statistics, each [N], into the objective."""
    loss = terms.ce_weight * stats["ce"].sum()
    kd = stats["kd"] * terms.kd_scale if "kd" in stats else None
    if kd is not None and terms.kd_weight != 0:
        loss = loss + terms.kd_weight * kd.sum()
    zero = loss.new_zeros(())
    kd_factor = terms.kd_weight * terms.kd_scale / terms.temperature
    return ObjectiveOutput(
        loss=loss / normaliser,
        ce=stats["ce"],
        kd=kd,
        teacher_nll=stats.get("teacher_nll"),
        teacher_entropy=stats.get("teacher_entropy"),
        top1_agreement=stats["top1_agreement"] > 0 if "top1_agreement" in stats else None,
        ce_grad_square=terms.ce_weight**2 * stats["ce_square"].sum() if "ce_square" in stats else zero,
        kd_grad_square=kd_factor**2 * stats["kd_square"].sum() if "kd_square" in stats else zero,
    )
