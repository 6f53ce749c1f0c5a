"""A teacher that runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.errors import ModelError
from stillhouse.models.head import final_norm, recorded_layers, split_model
from stillhouse.teachers.protocol import DenseTargets, Projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LiveTeacher:
    """A frozen model that is asked for its full distribution, batch by batch.

    ``vocab_size`` is V*, the number of real ids of the student's tokenizer: targets have exactly so
    many rows. ``vocabulary_map`` int64 [V*] gives the teacher's id of each student id when the
    student's vocabulary was trimmed; None means they are equal. With a map the teacher reads its own
    ids of the same segmentation, and its distribution is restricted to the kept ids (renormalised
    by the softmax over them).

    The model must be in its place already (``models.placement``); it is frozen here. Raises
    ModelError when the model's head is smaller than the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, *, vocabulary_map: Tensor | None, vocab_size: int) -> None:
        model.train(False)
        self.model = model.requires_grad_(False)
        self._num_parameters = int(model.num_parameters())
        self._parts = split_model(model)
        head = self._parts.head
        needed = vocab_size if vocabulary_map is None else int(vocabulary_map.max()) + 1
        if head.weight.shape[0] < needed:
            raise ModelError(
                f"teacher.path: its head has {head.weight.shape[0]} rows and the vocabulary needs {needed}; "
                "teacher and student do not share a tokenizer"
            )
        if vocabulary_map is None:
            self._map = None
            self._weight = head.weight.detach()[:vocab_size]
            self._bias = None if head.bias is None else head.bias.detach()[:vocab_size]
        else:
            assert vocabulary_map.shape == (vocab_size,)
            self._map = vocabulary_map.to(head.weight.device)
            self._weight = head.weight.detach()[self._map]
            self._bias = None if head.bias is None else head.bias.detach()[self._map]

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, tied ones once."""
        return self._num_parameters

    @torch.no_grad()
    def targets(self, batch: Batch, layers: Sequence[int] = ()) -> DenseTargets:
        """Return hidden states [N, H_t] with head [V*, H_t] at the positions that predict targets.

        ``layers`` names decoder layers (from 0) whose outputs [N, H_t] are wanted too. ``batch``
        must be on the model's device. Raises ModelError for a layer that does not exist.
        """
        own = batch if self._map is None else replace(batch, input_ids=self._map[batch.input_ids])
        with recorded_layers(self.model, layers) as outputs:
            hidden = self._parts.hidden(own)
        projection = replace(self._parts.projection(hidden), weight=self._weight, bias=self._bias)
        selected = batch.predictor_mask
        return DenseTargets(projection, {index: output[selected] for index, output in outputs.items()})

    def reader(self) -> Callable[[Tensor], Projection]:
        """Return the function that reads layer outputs [N, H_t] through the frozen final norm and head [V*, H_t].

        Gradients flow to its argument. Raises ModelError where the model has no such norm.
        """
        norm, dtype = final_norm(self.model), self._weight.dtype

        def read(hidden: Tensor) -> Projection:
            projection = self._parts.projection(norm(hidden.to(dtype)))
            return replace(projection, weight=self._weight, bias=self._bias)

        return read
