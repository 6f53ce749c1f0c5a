"""The student with its objective inside one forward, as DDP and FSDP2 need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from stillhouse.data.batch import Batch
from stillhouse.divergence.cross_tokenizer.objective import CrossTokenizerTerms, cross_tokenizer_objective
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.hidden_state import HiddenTargets
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.divergence.sparse import sparse_objective
from stillhouse.divergence.weighted import domain_weighted_objective
from stillhouse.models.head import decoder_layers, recorded_layers, split_model
from stillhouse.targets.sparse import SparseTargets
from stillhouse.teachers.protocol import AlignedTargets, Projection
from stillhouse.training.ted import HiddenAlignment

T = TypeVar("T")
GradientBuffer = Callable[[Tensor], Tensor | None]
Targets = Projection | SparseTargets | AlignedTargets | HiddenTargets | None


class DistillationModule(nn.Module):
    """Runs the student on a batch and returns (loss, everything the objective measured).

    The head's weight is used inside this forward only: under FSDP2 it is whole nowhere else.
    """

    def __init__(
        self, model: PreTrainedModel, *, chunk: int, compiled: bool, alignment: HiddenAlignment | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.alignment = alignment
        self.chunk = chunk
        self.compiled = compiled
        # In a tuple, so that the parts are not registered as modules a second time.
        self._parts = (split_model(model),)

    def forward(
        self,
        batch: Batch,
        teacher: Targets,
        terms: ObjectiveTerms,
        normaliser: float,
        gradient_buffer: GradientBuffer | None = None,
        domain_weights: Sequence[float] | None = None,
    ) -> tuple[Tensor, ObjectiveOutput]:
        """``normaliser``: target tokens of the whole optimizer step, over all ranks.

        ``domain_weights``: what a token of each domain counts (None: all alike); the normaliser is then
        the sum of these weights over the targets.
        """
        parts, layers = self._parts[0], self._aligned_layers(teacher)
        with recorded_layers(self.model, layers) as recorded:
            projection = parts.projection(parts.hidden(batch))
        buffer = None if gradient_buffer is None else gradient_buffer(projection.weight)
        how: dict[str, Any] = {
            "normaliser": normaliser,
            "chunk": self.chunk,
            "weight_grad_accumulator": buffer,
        }
        if domain_weights is not None:
            assert teacher is None
            output = domain_weighted_objective(
                projection, batch.labels, batch.domain_ids, domain_weights, terms, **how, compiled=self.compiled
            )
        elif isinstance(teacher, AlignedTargets):
            assert isinstance(terms, CrossTokenizerTerms)
            output = cross_tokenizer_objective(projection, batch.labels, teacher, terms, **how)
        elif isinstance(teacher, SparseTargets):
            output = sparse_objective(projection, batch.labels, teacher, terms, **how, compiled=self.compiled)
        elif isinstance(teacher, HiddenTargets):
            assert self.alignment is not None
            output = fused_objective(projection, batch.labels, teacher.projection, terms, **how, compiled=self.compiled)
            hidden = [recorded[i][batch.predictor_mask] for i in layers]
            mse = self.alignment.loss(hidden, teacher.goals, normaliser)
            output = replace(output, loss=output.loss + self.alignment.weight * mse, mse=mse.detach())
        else:
            output = fused_objective(projection, batch.labels, teacher, terms, **how, compiled=self.compiled)
        return output.loss, output

    def _aligned_layers(self, teacher: Targets) -> tuple[int, ...]:
        """The layers whose outputs this forward has to keep."""
        return self.alignment.layers if self.alignment is not None and isinstance(teacher, HiddenTargets) else ()

    def with_whole_root(self, call: Callable[[PreTrainedModel], T]) -> T:
        """Return ``call(model)`` with embedding, norm and head whole, for generation from a sharded student."""
        return call(self.model)


def shard_student(module: DistillationModule, dtype: torch.dtype, *, cpu_offload: bool) -> None:
    """Apply FSDP2: one group per decoder layer, the root holds embedding, norm and head."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    for layer in decoder_layers(module.model):
        fully_shard(layer, mp_policy=policy, offload_policy=offload)
    fully_shard(module, mp_policy=policy, offload_policy=offload)
    register_fsdp_forward_method(module, "with_whole_root")
