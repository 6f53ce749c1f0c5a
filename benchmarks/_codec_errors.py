"""Section `error`: loss and gradients on a codec's targets beside those on the dense distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _codec_setup import Setup
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.divergence.sparse import sparse_objective
from stillhouse.models.head import split_model
from stillhouse.recipe import ConvexMixing, KDObjective
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.targets.codec import Codec, Sampled
from stillhouse.teachers.protocol import Projection

KD_ONLY = KDObjective(type="kd", mixing=ConvexMixing(kd_weight=1.0))


@dataclass(frozen=True)
class Gradients:
    """Mean divergence, and the gradients at the hidden states [N, H] and the head [V, H]."""

    kd: float
    hidden: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Probe:
    """The tokens at which codecs are compared with the dense gradient."""

    batches: list[Batch]
    student: Projection
    teacher: Projection
    labels: Tensor
    terms: ObjectiveTerms
    chunk: int

    @classmethod
    def of(cls, setup: Setup, targets: int) -> Probe:
        """Spread about ``targets`` tokens over the batches, in float32."""
        step = max(1, sum(len(b.document_ids) for b in setup.batches) // targets)
        batches = setup.batches[::step]
        parts = split_model(setup.student)  # type: ignore[arg-type]
        with torch.no_grad():
            students = [parts.projection(parts.hidden(b)) for b in batches]
            teachers = [setup.teacher.targets(b).projection for b in batches]
        return cls(
            batches,
            joined(students),
            joined(teachers),
            torch.cat([b.labels for b in batches]),
            ObjectiveTerms.from_config(KD_ONLY, setup.vocab_size),
            setup.chunk,
        )

    def gradients(self, evaluate: Callable[[Projection, float], ObjectiveOutput]) -> Gradients:
        """Differentiate one objective."""
        hidden, weight = (t.detach().requires_grad_() for t in (self.student.hidden, self.student.weight))
        output = evaluate(
            Projection(hidden, weight, self.student.bias, self.student.scale, self.student.softcap),
            float(len(self.labels)),
        )
        assert output.kd is not None
        return Gradients(float(output.kd.mean()), *torch.autograd.grad(output.loss, [hidden, weight]))

    def dense(self) -> tuple[Gradients, float]:
        """The truth, and the teacher's mean entropy."""
        entropies = []

        def evaluate(student: Projection, normaliser: float) -> ObjectiveOutput:
            output = fused_objective(
                student, self.labels, self.teacher, self.terms, normaliser=normaliser, chunk=self.chunk, compiled=True
            )
            assert output.teacher_entropy is not None
            entropies.append(float(output.teacher_entropy.mean()))
            return output

        return self.gradients(evaluate), entropies[0]

    def sparse(self, cache: TargetCache, documents: DocumentSet) -> Gradients:
        """The same from a cache."""
        reader = CachedTeacher(cache, documents)
        found = [reader.targets(batch) for batch in self.batches]

        def evaluate(student: Projection, normaliser: float) -> ObjectiveOutput:
            return joined_objective(student, self, found, normaliser)

        return self.gradients(evaluate)


def joined_objective(student: Projection, probe: Probe, found: Sequence[Any], normaliser: float) -> ObjectiveOutput:
    """Evaluate all batches' targets as one: rows are padded to one number of slots."""
    slots = max(t.ids.shape[1] for t in found)
    ids = torch.cat([torch.nn.functional.pad(t.ids, (0, slots - t.ids.shape[1]), value=-1) for t in found])
    weight = torch.cat([torch.nn.functional.pad(t.weight, (0, slots - t.weight.shape[1])) for t in found])
    first = found[0]
    targets = type(first)(ids, weight, first.tail, first.kind, first.temperature, first.vocab_size)
    return sparse_objective(
        student, probe.labels, targets, probe.terms, normaliser=normaliser, chunk=probe.chunk, compiled=True
    )


def joined(projections: Sequence[Projection]) -> Projection:
    """Put the hidden states of several batches together, in float32."""
    first = projections[0]
    bias = None if first.bias is None else first.bias.float()
    hidden = torch.cat([p.hidden for p in projections]).float()
    return Projection(hidden, first.weight.float(), bias, first.scale, first.softcap)


def errors(found: Gradients, dense: Gradients, entropy: float, codec: Codec) -> dict[str, float]:
    """Compare with the truth; the token error is the median over tokens."""
    by_token = (found.hidden - dense.hidden).norm(dim=1) / dense.hidden.norm(dim=1).clamp_min(1e-20)
    return {
        "kl_bias": found.kd - dense.kd - (entropy if isinstance(codec, Sampled) else 0.0),
        "token": float(by_token.median()),
        "batch": float((found.weight - dense.weight).norm() / dense.weight.norm()),
    }
