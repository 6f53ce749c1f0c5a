"""TED inside the training loop (Liang et al. 2023, arXiv 2210.01351): filters first, then the student beside them.

Stage I trains the filters of teacher and student, each with its own model frozen, on the task loss:
filter k's output is read by a frozen final norm and head. That is the model's own where the filter
keeps its width. A student narrower than its teacher is filtered into the teacher's width, and the
teacher's norm and head read it there. Stage II is the training loop's own: the student's filters are
trained with it, the teacher's make the goals. Layer outputs are scaled to a root mean square of 1
before any filter.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.hidden_state import (
    Filter,
    HiddenTargets,
    alignment_loss,
    filter_task_loss,
    filtered,
    layer_map,
    make_filters,
    unit_scale,
)
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.errors import TrainingError
from stillhouse.mixture.plan import Plan
from stillhouse.models.head import final_norm, recorded_layers, split_model
from stillhouse.randomness import derive_seed
from stillhouse.recipe import OptimisationConfig, SFTObjective, TEDObjective
from stillhouse.rollout.mode import evaluating
from stillhouse.run_directory import read_json, write_json_atomic
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import Projection
from stillhouse.training.batches import rank_share
from stillhouse.training.distributed import World
from stillhouse.training.precision import MasterWeights, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_FILTERS = 12
"""Unless the recipe says how many: each one costs a matrix product of both widths per token."""
FILTER_PREFIX = "alignment."
"""Of the filters' names among those of the wrapped module."""
_TENSORS, _REPORT = "filters.safetensors", "filters.json"

Reader = Callable[[Tensor], Projection]
Outputs = Callable[[Batch], list[Tensor]]


@dataclass(frozen=True)
class Shape:
    """What filters need to know of a model."""

    layers: int
    width: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """Read them from a model's configuration."""
        text = config.get_text_config()
        return cls(text.num_hidden_layers, text.hidden_size)


class HiddenAlignment(nn.Module):
    """The student's filters, a part of the wrapped module but never of the model itself.

    ``layers`` and ``teacher_layers``: the aligned decoder layers of either, counted from 0.
    """

    def __init__(self, config: TEDObjective, student: Shape, teacher: Shape, *, seed: int) -> None:
        super().__init__()
        count = config.filters or min(student.layers, teacher.layers, MAX_FILTERS)
        self.layers = tuple(layer - 1 for layer in layer_map(count, student.layers))
        self.teacher_layers = tuple(layer - 1 for layer in layer_map(count, teacher.layers))
        self.weight = config.mse_weight
        self.filters = make_filters(
            count, student.width, teacher.width, seed=seed, side="student", mlp_features=config.mlp_features
        )

    def loss(self, hidden: Sequence[Tensor], goals: Sequence[Tensor], normaliser: float) -> Tensor:
        """The MSE of M layer outputs [N, d_S] against the goals [N, d_f], a float32 scalar before its weight."""
        return alignment_loss([unit_scale(h) for h in hidden], goals, self.filters, normaliser=normaliser)


class AlignedModule(Protocol):
    """The wrapped student, as far as stage I needs it."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def alignment(self) -> HiddenAlignment | None: ...


class HiddenTeacher:
    """The teacher with its frozen filters: its distribution and the goals of the student's layers."""

    def __init__(self, teacher: LiveTeacher, alignment: HiddenAlignment, filters: nn.ModuleList) -> None:
        self.teacher, self.filters = teacher, filters
        self._layers = alignment.teacher_layers

    def targets(self, batch: Batch) -> HiddenTargets:
        """Targets of a batch on the device, N of each."""
        found = self.teacher.targets(batch, self._layers)
        outputs = [unit_scale(found.layers[i]) for i in self._layers]
        return HiddenTargets(found.projection, filtered(outputs, self.filters))


@dataclass(frozen=True)
class FilterTraining:
    """All that stage I needs. ``folder`` is the stage's, where its result is kept."""

    config: TEDObjective
    optimisation: OptimisationConfig
    documents: DocumentSet
    vocab_size: int
    folder: Path
    seed: int
    pad_id: int
    world: World

    def run(self, module: AlignedModule, weights: Weights, hidden_teacher: HiddenTeacher, *, resumed: bool) -> None:
        """Give both sides their trained filters: those of an earlier attempt, else new ones.

        ``resumed``: the student's come from its checkpoint. Every rank calls this and gets the same.
        """
        assert isinstance(weights, MasterWeights), "the recipe's validation refuses sharded students"
        path = self.folder / _TENSORS
        found = path.exists()
        self.world.barrier()  # nobody writes before all have looked
        if found or resumed:
            saved = _load(path)
        else:
            saved = self._train(module, weights, hidden_teacher)
            self.world.barrier()
        hidden_teacher.filters.load_state_dict(_side(saved, "teacher"))
        if not resumed:
            masters = weights.named()
            with torch.no_grad():
                for name, value in _side(saved, "student").items():
                    masters[f"{FILTER_PREFIX}filters.{name}"].copy_(value)
            weights.refresh()

    def report(self) -> dict[str, Any]:
        """What stage I did, for ``result.json``."""
        found: dict[str, Any] = read_json(self.folder / _REPORT)
        return found

    def _train(self, module: AlignedModule, weights: MasterWeights, hidden_teacher: HiddenTeacher) -> dict[str, Tensor]:
        started = time.monotonic()
        student, alignment, teacher = module.model, module.alignment, hidden_teacher.teacher
        assert alignment is not None
        read_teacher = teacher.reader()
        same_width = _width(hidden_teacher.filters) == _width(alignment.filters)
        # Trained in float32 apart from the module, whose own copies may be coarser.
        own = copy.deepcopy(alignment.filters).float()
        masters = weights.named()
        own.load_state_dict({name: masters[f"{FILTER_PREFIX}filters.{name}"] for name in own.state_dict()})

        def teacher_outputs(batch: Batch) -> list[Tensor]:
            layers = teacher.targets(batch, alignment.teacher_layers).layers
            return [unit_scale(layers[i]) for i in alignment.teacher_layers]

        losses = {
            "teacher": self._train_side("teacher", hidden_teacher.filters, teacher_outputs, read_teacher),
            "student": self._train_side(
                "student",
                own,
                _student_outputs(student, alignment.layers),
                _student_reader(student) if same_width else read_teacher,
            ),
        }
        sides = {"teacher": hidden_teacher.filters, "student": own}
        saved = {f"{s}.{n}": v.detach().cpu() for s, filters in sides.items() for n, v in filters.state_dict().items()}
        if self.world.is_main:
            write_json_atomic(
                self.folder / _REPORT,
                {
                    "filters": len(own),
                    "teacher_layers": [i + 1 for i in alignment.teacher_layers],
                    "student_layers": [i + 1 for i in alignment.layers],
                    "first_loss": {side: values[0] for side, values in losses.items()},
                    "last_loss": {side: values[-1] for side, values in losses.items()},
                    "seconds": time.monotonic() - started,
                },
            )
            _save(saved, self.folder / _TENSORS)
        return saved

    def _train_side(self, side: str, filters: nn.ModuleList, outputs: Outputs, read: Reader) -> list[float]:
        """Train one side's filters in place; returns the loss of each step, mean over filters in nats per token."""
        terms = ObjectiveTerms.from_config(SFTObjective(type="sft"), self.vocab_size)
        optimizer = torch.optim.AdamW(filters.parameters(), lr=self.config.filter_learning_rate, weight_decay=0.0)
        optimisation, steps = self.optimisation, self.config.filter_steps
        plan = Plan(
            self.documents.lengths, batch_tokens=optimisation.batch_tokens, seed=derive_seed(self.seed, "filters")
        )
        losses = []
        for step in range(steps):
            indices = np.asarray(plan.documents(step), dtype=np.int64)
            normaliser = float(self.documents.num_targets[indices].sum())
            optimizer.zero_grad(set_to_none=False)
            total = torch.zeros((), dtype=torch.float64, device=self.world.device)
            for batch in rank_share(self.documents, indices, optimisation, pad_id=self.pad_id, world=self.world):
                batch = batch.to(self.world.device)

                def task_loss(hidden: Tensor, labels: Tensor = batch.labels, normaliser: float = normaliser) -> Tensor:
                    return fused_objective(
                        read(hidden),
                        labels,
                        None,
                        terms,
                        normaliser=normaliser,
                        chunk=optimisation.head_chunk,
                        compiled=optimisation.compile_head,
                    ).loss

                loss = filter_task_loss(outputs(batch), filters, task_loss)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            for parameter in filters.parameters():
                assert parameter.grad is not None
                self.world.sum_(parameter.grad)
            losses.append(float(self.world.sum_(total)))
            if not np.isfinite(losses[-1]):
                raise TrainingError(
                    f"the {side}'s filters: the loss of step {step + 1} is {losses[-1]}; "
                    "lower objective.filter_learning_rate"
                )
            for group in optimizer.param_groups:
                group["lr"] = self.config.filter_learning_rate * (1 - step / steps)
            optimizer.step()
        return losses


def teacher_filters(config: TEDObjective, alignment: HiddenAlignment, teacher: Shape, *, seed: int) -> nn.ModuleList:
    """The teacher's filters before stage I; they take no gradient after it."""
    return make_filters(
        len(alignment.layers), teacher.width, teacher.width, seed=seed, side="teacher", mlp_features=config.mlp_features
    )


def _student_outputs(model: PreTrainedModel, layers: Sequence[int]) -> Outputs:
    """The scaled outputs [N, d_S] of the student's layers at the target positions, without a graph."""
    parts = split_model(model)

    def outputs(batch: Batch) -> list[Tensor]:
        with torch.no_grad(), evaluating(model), recorded_layers(model, layers) as found:
            parts.hidden(batch)
        return [unit_scale(found[i][batch.predictor_mask]) for i in layers]

    return outputs


def _student_reader(model: PreTrainedModel) -> Reader:
    """The student's own final norm and head, whose weights get no gradient here."""
    parts = split_model(model)
    norm, dtype = final_norm(model), parts.head.weight.dtype
    frozen = {name: value.detach() for name, value in norm.state_dict(keep_vars=True).items()}

    def read(hidden: Tensor) -> Projection:
        projection = parts.projection(functional_call(norm, frozen, (hidden.to(dtype),)))
        bias = None if projection.bias is None else projection.bias.detach()
        return replace(projection, weight=projection.weight.detach(), bias=bias)

    return read


def _width(filters: nn.ModuleList) -> int:
    """The width of the model that the filters read."""
    first = filters[0]
    assert isinstance(first, Filter)
    return first.first.in_features


def _side(saved: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{side}."): value for name, value in saved.items() if name.startswith(f"{side}.")}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
    temporary.replace(path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path}: the filters of stage I cannot be read ({error}); delete the stage's folder of checkpoints to "
            "train it again"
        ) from error
