"""Where a frozen teacher's weights live when one accelerator is too small for them.

Only decoder layers are moved or sharded. Embedding, final norm and head stay whole on the device:
the objective uses the head's weight outside the model's forward, where a sharded one would be a
DTensor without its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stillhouse.errors import ModelError
from stillhouse.models.head import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Placement = Literal["whole", "sharded", "offload"]


def place_model(model: PreTrainedModel, placement: Placement, device: torch.device) -> PreTrainedModel:
    """Put a frozen model in place for forward passes on ``device``; returns the same model.

    ``whole`` moves everything; ``offload`` see :func:`offload_layers`; ``sharded`` see
    :func:`shard_layers`. Raises ModelError for ``sharded`` without a process group.
    """
    if placement == "offload":
        return offload_layers(model, device)
    if placement == "sharded":
        return shard_layers(model, device)
    model.to(device)  # type: ignore[arg-type]
    return model


class _VisitingLayer:
    """Hooks that bring one layer's tensors to ``device`` for its forward, and put them back after it."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self.device = device
        tensors = [*layer.parameters(), *layer.buffers()]
        for tensor in tensors:
            # Pinned memory makes the copy asynchronous; it exists only beside an accelerator.
            if device.type != "cpu":
                tensor.data = tensor.data.pin_memory()
        self.homes: list[tuple[Tensor, Tensor]] = [(tensor, tensor.data) for tensor in tensors]
        layer.register_forward_pre_hook(self.arrive)
        layer.register_forward_hook(self.leave, always_call=True)

    def arrive(self, _layer: nn.Module, _inputs: object) -> None:
        for tensor, home in self.homes:
            tensor.data = home.to(self.device, non_blocking=True, copy=True)

    def leave(self, _layer: nn.Module, _inputs: object, _output: object) -> None:
        for tensor, home in self.homes:
            tensor.data = home


def _move_all_but_layers(model: PreTrainedModel, device: torch.device) -> nn.ModuleList:
    """Move embedding, final norm, head and shared buffers to ``device``; return the decoder layers."""
    layers = decoder_layers(model)
    inside = {id(t) for t in [*layers.parameters(), *layers.buffers()]}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
    return layers


def offload_layers(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Keep decoder layers in CPU memory; each visits ``device`` for its own forward only.

    The model must be on the CPU and frozen: a backward pass would find the layers gone.
    """
    layers = _move_all_but_layers(model, device)
    for layer in layers:
        _VisitingLayer(layer, device)
    return model


def shard_layers(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Shard every decoder layer over all ranks (FSDP2); everything else is whole on every rank.

    Every rank must then run the same number of forward passes. Raises ModelError when no process
    group is initialised.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not (dist.is_available() and dist.is_initialized()):
        raise ModelError(
            "teacher.placement=sharded needs several processes; start with torchrun or use placement: whole"
        )
    layers = _move_all_but_layers(model, device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        # Each layer is a root of its own here, and roots keep their weights whole unless told otherwise.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    return model
