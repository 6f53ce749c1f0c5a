"""One optimizer step: micro-batches in, weights moved, measurements out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from stillhouse.data.batch import Batch
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.errors import TrainingError
from stillhouse.recipe import OptimisationConfig
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.teachers.aligned import AlignedTeacher
from stillhouse.teachers.protocol import Teacher
from stillhouse.training.distributed import World
from stillhouse.training.doremi import ProxyWeights, Weighting
from stillhouse.training.precision import Weights
from stillhouse.training.student import DistillationModule, Targets
from stillhouse.training.ted import FILTER_PREFIX, HiddenTeacher

_QUANTITIES = ("targets", "ce", "kd", "teacher_nll", "teacher_entropy", "top1_agreement")
_SCALARS = 3
"""Sums over all domains: squared gradients of CE and KD at the logits, and TED's MSE."""


@dataclass(frozen=True)
class StepOutcome:
    """What one step measured, over all ranks. Losses are means in nats per target token."""

    targets: int
    loss: float
    ce: float
    kd: float | None
    teacher_nll: float | None
    teacher_entropy: float | None
    top1_agreement: float | None
    grad_norm: float
    grad_rms_ratio: float | None
    domains: dict[str, dict[str, float]]
    more: dict[str, Any] = field(default_factory=dict)
    """What only this method measures, by name."""

    def as_metrics(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "more"}
        return {**values, **self.more}


def cosine_learning_rate(step: int, total: int, config: OptimisationConfig) -> float:
    """Rate of 0-based ``step``: linear warm-up to the peak, then cosine to the floor at the last step."""
    warmup = math.ceil(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    floor = config.learning_rate * config.min_learning_rate_ratio
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return floor + 0.5 * (config.learning_rate - floor) * (1 + math.cos(math.pi * min(1.0, progress)))


class TrainStep:
    """Owns the optimizer; the same gradient for any split into micro-batches and any world size."""

    def __init__(
        self,
        module: DistillationModule,
        weights: Weights,
        *,
        teacher: Teacher | CachedTeacher | AlignedTeacher | HiddenTeacher | None,
        terms: ObjectiveTerms,
        config: OptimisationConfig,
        domains: Sequence[str],
        world: World,
        proxy: ProxyWeights | None = None,
        filter_learning_rate: float | None = None,
    ) -> None:
        """``proxy`` weighs the domains of each step (DoReMi); ``filter_learning_rate`` is that of TED's filters."""
        self.module, self.weights, self.proxy = module, weights, proxy
        self._teacher, self._terms, self._config = teacher, terms, config
        self._domains, self._world = tuple(domains), world
        named = weights.named()
        filters = [p for n, p in named.items() if n.startswith(FILTER_PREFIX)]
        decayed = [p for n, p in named.items() if p.ndim > 1 and not n.startswith(FILTER_PREFIX)]
        plain = [p for n, p in named.items() if p.ndim <= 1 and not n.startswith(FILTER_PREFIX)]
        # Each group follows the same schedule, scaled to its own peak.
        faster = (filter_learning_rate or 0.0) / config.learning_rate
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay, "scale": 1.0},
            {"params": plain, "weight_decay": 0.0, "scale": 1.0},
            {"params": filters, "weight_decay": 0.0, "scale": faster},
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            fused=not any(isinstance(p, DTensor) for p in named.values()),
        )

    def run(
        self, micro_batches: Sequence[Batch], normaliser: int, learning_rate: float, *, on_policy: bool = False
    ) -> StepOutcome:
        """Train on this rank's share of a step whose ranks hold ``normaliser`` targets together.

        ``on_policy``: the targets are the student's own words, so there is no cross-entropy.

        Raises TrainingError, before any weight moves, when the loss or the gradient is not finite.
        """
        self.weights.zero_gradients()
        sums = _Sums(len(self._domains))
        terms = replace(self._terms, ce_weight=0.0) if on_policy else self._terms
        weighting = None if self.proxy is None else self.proxy.move(micro_batches)
        for batch, targets in self._with_targets(micro_batches):
            output = self._forward_backward(batch, targets, normaliser, terms, weighting)
            sums.add(output, batch, self._world.device)
        self.weights.reduce_gradients(self._world)
        totals = self._world.sum_(sums.flat)
        gradients = [p.grad for p in self.weights.named().values() if p.grad is not None]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        outcome = self._outcome(totals, float(norm), normaliser, terms)
        outcome = self._with_method(outcome, totals, weighting)
        self._refuse_not_finite(outcome)
        if self._config.max_grad_norm is not None:
            clip_grads_with_norm_(list(self.weights.named().values()), self._config.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()
        self.weights.refresh()
        return outcome

    def _with_targets(self, micro_batches: Sequence[Batch]) -> Iterator[tuple[Batch, Targets]]:
        """Each batch on the device with what the teacher says; cached targets are read ahead by a thread."""
        device = self._world.device
        if isinstance(self._teacher, CachedTeacher):
            for batch, sparse in self._teacher.stream(micro_batches):
                yield batch.to(device), sparse.to(device)
            return
        for batch in (b.to(device) for b in micro_batches):
            if isinstance(self._teacher, AlignedTeacher | HiddenTeacher):
                yield batch, self._teacher.targets(batch)
            else:
                yield batch, None if self._teacher is None else self._teacher.targets(batch).projection

    def _forward_backward(
        self,
        batch: Batch,
        targets: Targets,
        normaliser: int,
        terms: ObjectiveTerms,
        weighting: Weighting | None,
    ) -> ObjectiveOutput:
        divisor, domain_weights = float(normaliser), None
        if weighting is not None:
            divisor, domain_weights = weighting.normaliser, weighting.token_weights.tolist()
        loss, output = self.module(batch, targets, terms, divisor, self.weights.gradient_of, domain_weights)
        self.weights.scale_loss(loss, self._world).backward()  # type: ignore[no-untyped-call]
        return output  # type: ignore[no-any-return]

    def _outcome(self, totals: Tensor, norm: float, normaliser: int, terms: ObjectiveTerms) -> StepOutcome:
        ce_square, kd_square = totals[:2].tolist()
        table = totals[_SCALARS:].view(len(self._domains), len(_QUANTITIES))
        whole = table.sum(dim=0) / normaliser
        means = dict(zip(_QUANTITIES, whole.tolist(), strict=True))
        kd = self._teacher is not None
        # A cache may have been captured without the teacher's own NLL and entropy, and a server tells no entropy.
        known = {name: kd and (normaliser == 0 or means[name] != 0) for name in ("teacher_nll", "teacher_entropy")}
        # Models that choose between different tokens cannot agree on one.
        other_tokens = isinstance(self._teacher, AlignedTeacher)
        shown = _QUANTITIES[:4] if other_tokens else _QUANTITIES[: None if kd else 2]
        loss = terms.ce_weight * means["ce"] + terms.kd_weight * means["kd"]
        return StepOutcome(
            targets=normaliser,
            loss=loss,
            ce=means["ce"],
            kd=means["kd"] if kd else None,
            teacher_nll=means["teacher_nll"] if known["teacher_nll"] else None,
            teacher_entropy=means["teacher_entropy"] if known["teacher_entropy"] else None,
            top1_agreement=means["top1_agreement"] if kd and not other_tokens else None,
            grad_norm=norm,
            grad_rms_ratio=math.sqrt(kd_square / ce_square) if kd and ce_square > 0 else None,
            domains=self._domain_means(table, [name for name in shown if known.get(name, True)]),
        )

    def _with_method(self, outcome: StepOutcome, totals: Tensor, weighting: Weighting | None) -> StepOutcome:
        """The outcome with what DoReMi's proxy or TED has of its own, in loss and measurements."""
        if weighting is not None:
            assert self.proxy is not None
            sums = totals[_SCALARS:].view(len(self._domains), len(_QUANTITIES))[:, _QUANTITIES.index("ce")]
            loss = float(sums.cpu().numpy() @ weighting.token_weights) / weighting.normaliser
            return replace(outcome, loss=loss, more=self.proxy.metrics())
        if self.module.alignment is not None:
            mse = float(totals[2])
            return replace(outcome, loss=outcome.loss + self.module.alignment.weight * mse, more={"mse": mse})
        return outcome

    def _domain_means(self, table: Tensor, shown: Sequence[str]) -> dict[str, dict[str, float]]:
        result = {}
        for name, row in zip(self._domains, table.tolist(), strict=True):
            if row[0] > 0:
                values = dict(zip(_QUANTITIES, row, strict=True))
                result[name] = {q: values[q] if q == "targets" else values[q] / row[0] for q in shown}
        return result

    def _refuse_not_finite(self, outcome: StepOutcome) -> None:
        if math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm):
            return
        bad = [d for d, v in outcome.domains.items() if not all(math.isfinite(x) for x in v.values())]
        where = f" (domains: {', '.join(bad)})" if bad else ""
        raise TrainingError(
            f"the loss is {outcome.loss} and the gradient norm {outcome.grad_norm}{where}; "
            "lower optimisation.learning_rate, or look for rows of extreme length or content in these domains"
        )


class _Sums:
    """Float64 sums by domain, in one flat tensor so that one all-reduce carries them."""

    def __init__(self, num_domains: int) -> None:
        self.flat = torch.zeros(_SCALARS + num_domains * len(_QUANTITIES), dtype=torch.float64)
        self._num_domains = num_domains

    def add(self, output: ObjectiveOutput, batch: Batch, device: torch.device) -> None:
        self.flat = self.flat.to(device)
        scalars = [output.ce_grad_square, output.kd_grad_square, 0.0 if output.mse is None else output.mse]
        self.flat[:_SCALARS] += torch.stack([torch.as_tensor(s, dtype=torch.float64, device=device) for s in scalars])
        table = self.flat[_SCALARS:].view(self._num_domains, len(_QUANTITIES))
        ones = torch.ones_like(output.ce)
        columns = (ones, output.ce, output.kd, output.teacher_nll, output.teacher_entropy, output.top1_agreement)
        domains = batch.domain_ids.to(device)
        for column, values in enumerate(columns):
            if values is not None:
                table[:, column].index_add_(0, domains, values.to(torch.float64))
