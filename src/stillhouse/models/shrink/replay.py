"""A forward pass opened at its decoder layers, so that layers can be left out without running the rest again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillhouse.data.batch import Batch
from stillhouse.errors import ModelError
from stillhouse.models.head import CausalParts, decoder_layers, split_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FINAL_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


@dataclass
class LayerCall:
    """What a decoder layer was called with, besides the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Recording:
    """``states[l]`` [1, T, H] enters layer l; the last one leaves the last layer. ``calls`` one per layer."""

    states: list[Tensor]
    calls: list[LayerCall]


class LayerReplay:
    """Records a model's pass over a batch and replays any sequence of its layers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.parts: CausalParts = split_model(model)
        self.layers = decoder_layers(model)
        self.norm = _final_norm(model, self.layers)

    @torch.no_grad()
    def record(self, batch: Batch) -> Recording:
        """Run the whole model once. Raises ModelError if its layers do not simply follow each other."""
        recording = Recording([], [])

        def keep(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = dict(kwargs)
            state = args[0] if args else named.pop("hidden_states")
            recording.states.append(state)
            recording.calls.append(LayerCall(args[1:], named))

        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in self.layers]
        try:
            final = self.parts.states(batch)
        finally:
            for handle in handles:
                handle.remove()
        recording.states.append(self.run(recording, recording.states[-1], [len(self.layers) - 1]))
        if not torch.allclose(self.norm(recording.states[-1]), final, rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"student.depth: the decoder layers of {type(self.parts.backbone).__name__} are not followed by its "
                "final norm alone, so layers cannot be removed; use a Llama-like model"
            )
        return recording

    @torch.no_grad()
    def run(self, recording: Recording, state: Tensor, layers: Sequence[int]) -> Tensor:
        """Send ``state`` [1, T, H] through ``layers`` in that order, each called as it was recorded."""
        for index in layers:
            call = recording.calls[index]
            output = self.layers[index](state, *call.args, **call.kwargs)
            state = output if isinstance(output, Tensor) else output[0]
        return state


def _final_norm(model: PreTrainedModel, layers: nn.ModuleList) -> nn.Module:
    parent = next(m for m in model.modules() if any(child is layers for child in m.children()))
    for name in FINAL_NORM_NAMES:
        norm = getattr(parent, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise ModelError(f"student.depth: {type(parent).__name__} has no final norm ({', '.join(FINAL_NORM_NAMES)})")
