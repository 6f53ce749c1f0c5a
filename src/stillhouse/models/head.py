"""A causal language model in two parts: the backbone, and the head that turns hidden states into logits.

Divergences work on (hidden, weight, bias, scale, softcap), so logits exist one chunk of tokens at a
time. Model families post-process their logits (Gemma caps them, Cohere and Granite scale them, Phi
adds a bias); :func:`verify_head` proves on a small batch that nothing was missed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillhouse.data.batch import Batch
from stillhouse.errors import ModelError
from stillhouse.teachers.protocol import Projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER_LIST_NAMES = ("layers", "h", "blocks")
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")


@dataclass(frozen=True)
class CausalParts:
    """``backbone`` maps ids to final hidden states; ``head`` is the linear map onto the vocabulary.

    ``scale`` and ``softcap`` are what the model does to its logits afterwards (see ``Projection``).
    """

    backbone: nn.Module
    head: nn.Linear
    scale: float
    softcap: float | None
    takes_position_ids: bool

    def states(self, batch: Batch) -> Tensor:
        """Return the final hidden states of every position, after the last norm, [B, T, H].

        No attention mask: padding is on the right and attention is causal, so padding is never
        seen. ``use_cache=False`` is what makes transformers isolate packed documents.
        """
        arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if self.takes_position_ids:
            arguments["position_ids"] = batch.position_ids
        elif batch.packed:
            raise ModelError(
                f"optimisation.layout=packed: {type(self.backbone).__name__} takes no position_ids, so packed "
                "documents would see each other; use layout: padded"
            )
        states = self.backbone(**arguments).last_hidden_state
        assert isinstance(states, Tensor)
        return states

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states that predict the targets, [N, H], row-major."""
        return self.states(batch)[batch.predictor_mask]

    def projection(self, hidden: Tensor) -> Projection:
        """Join ``hidden`` [N, H] with the head; the weight [V, H] keeps its padding rows."""
        return Projection(hidden, self.head.weight, self.head.bias, self.scale, self.softcap)


def split_model(model: PreTrainedModel) -> CausalParts:
    """Return the parts of a transformers causal model (with or without LoRA layers inside).

    Raises ModelError when the model has no linear head onto the vocabulary.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    backbone = getattr(model, model.base_model_prefix, None)
    # LoRA and 4-bit layers are no nn.Linear themselves, but the head is never wrapped by them.
    if not isinstance(head, nn.Linear) or not isinstance(backbone, nn.Module) or backbone is model:
        raise ModelError(
            f"{type(model).__name__} has no backbone with a linear head onto the vocabulary; "
            "choose a decoder-only causal language model"
        )
    return CausalParts(
        backbone=backbone,
        head=head,
        scale=_logit_scale(model),
        softcap=getattr(model.config, "final_logit_softcapping", None),
        takes_position_ids="position_ids" in inspect.signature(backbone.forward).parameters,
    )


def _logit_scale(model: PreTrainedModel) -> float:
    """Cohere multiplies its logits by ``logit_scale``; Granite divides them by ``logits_scaling``."""
    multiplier = getattr(model.config, "logit_scale", None)
    divisor = getattr(model.config, "logits_scaling", None)
    return float(multiplier if multiplier is not None else 1.0) / float(divisor if divisor is not None else 1.0)


def apply_head(projection: Projection) -> Tensor:
    """Return the logits [N, V] of a projection, all at once: for small N only."""
    logits = nn.functional.linear(projection.hidden, projection.weight, projection.bias) * projection.scale
    if projection.softcap is not None:
        logits = projection.softcap * torch.tanh(logits / projection.softcap)
    return logits


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers of a causal model or of its backbone.

    Raises ModelError when there is not exactly one such list.
    """
    backbone = getattr(model, getattr(model, "base_model_prefix", ""), model)
    for parent in (backbone, getattr(backbone, "decoder", None)):
        for name in LAYER_LIST_NAMES:
            layers = getattr(parent, name, None)
            if isinstance(layers, nn.ModuleList):
                return layers
    raise ModelError(f"{type(model).__name__}: no list of decoder layers found ({', '.join(LAYER_LIST_NAMES)})")


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the module between the last decoder layer and the head, which reads any layer's output as the last one's.

    Raises ModelError when there is none, or when it alone does not turn the last layer's output into
    what the head gets (checked on one batch).
    """
    parts = split_model(model)
    for parent in (parts.backbone, getattr(parts.backbone, "decoder", None)):
        for name in FINAL_NORM_NAMES:
            norm = getattr(parent, name, None)
            if isinstance(norm, nn.Module) and _follows_the_layers(model, parts, norm):
                return norm
    raise ModelError(
        f"{type(model).__name__}: no final norm found between its decoder layers and its head "
        f"({', '.join(FINAL_NORM_NAMES)}), so its layers cannot be read on their own; choose another model family"
    )


def _follows_the_layers(model: PreTrainedModel, parts: CausalParts, norm: nn.Module) -> bool:
    last = len(decoder_layers(model)) - 1
    with _evaluation_mode(model):
        with recorded_layers(model, [last]) as outputs:
            states = parts.states(probe_batch(model))
        read = norm(outputs[last])
    tolerance = 1e-4 if parts.head.weight.dtype == torch.float32 else 3e-2
    return torch.allclose(read.float(), states.float(), rtol=tolerance, atol=tolerance * states.abs().max().item())


@contextmanager
def recorded_layers(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the context, keep the output [B, T, H] of the decoder layers with these indices.

    Raises ModelError for an index that the model does not have.
    """
    outputs: dict[int, Tensor] = {}
    modules = decoder_layers(model) if layers else nn.ModuleList()
    handles = []
    try:
        for index in layers:
            if not 0 <= index < len(modules):
                raise ModelError(f"layer {index}: {type(model).__name__} has layers 0 to {len(modules) - 1}")

            def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...], at: int = index) -> None:
                outputs[at] = output if isinstance(output, Tensor) else output[0]

            handles.append(modules[index].register_forward_hook(keep))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def probe_batch(model: PreTrainedModel, *, packed: bool = False) -> Batch:
    """Return a small batch of ids spread over the vocabulary: two documents of 6 tokens, as rows or packed."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    device = embeddings.weight.device
    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.arange(12, device=device) * 7919 + 11) % vocabulary
    positions = torch.arange(6, device=device).repeat(2)
    shape = (1, 12) if packed else (2, 6)
    mask = positions > 0
    zeros = torch.zeros(int(mask.sum()), dtype=torch.int64, device=device)
    return Batch(ids.view(shape), positions.view(shape), mask.view(shape), zeros, zeros, packed=packed)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def verify_head(model: PreTrainedModel) -> None:
    """Check on one batch that the parts reproduce ``model(**x).logits``.

    The tolerance follows the model's dtype (float32: 1e-4 of the largest logit). Raises ModelError
    naming the class when they do not: the model then does something to its logits that a
    ``Projection`` cannot express.
    """
    parts, batch = split_model(model), probe_batch(model)
    with _evaluation_mode(model):
        ours = apply_head(parts.projection(parts.hidden(batch))).float()
        arguments = {"position_ids": batch.position_ids} if parts.takes_position_ids else {}
        theirs = model(input_ids=batch.input_ids, use_cache=False, **arguments).logits[batch.predictor_mask].float()
    tolerance = 1e-4 if parts.head.weight.dtype == torch.float32 else 3e-2
    error = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("inf")
    if not error <= tolerance * max(theirs.abs().max().item(), 1e-3):
        raise ModelError(
            f"{type(model).__name__}: its logits are not reproduced from hidden states, head weight, bias, scale and "
            f"softcap (largest difference {error:.3g}), so module {type(parts.head).__name__} of this model cannot "
            "be used for distillation; choose another model family"
        )


def verify_isolation(model: PreTrainedModel) -> None:
    """Check that packed documents do not see each other.

    Raises ModelError naming ``optimisation.layout`` when the attention backend lets them.
    """
    parts = split_model(model)
    with _evaluation_mode(model):
        apart = parts.hidden(probe_batch(model)).float()
        together = parts.hidden(probe_batch(model, packed=True)).float()
    tolerance = 1e-3 if parts.head.weight.dtype == torch.float32 else 6e-2
    if not torch.allclose(apart, together, rtol=tolerance, atol=tolerance * apart.abs().max().item()):
        raise ModelError(
            f"optimisation.layout=packed: {type(model).__name__} with attention "
            f"{model.config._attn_implementation!r} lets packed documents see each other; use layout: padded"
        )
