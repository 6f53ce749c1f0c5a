"""Narrower layers by activation importance: Minitron (Muralidharan et al. 2024, 2407.14679; methods.md section 11).

Hidden channels are one global set, because the residual stream joins all layers; MLP neurons and
key-value groups are chosen per layer, equally many in each. Heads keep their width, so that rotary
embeddings stay valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.head import split_model
from stillhouse.models.shrink.calibration import document_batches
from stillhouse.models.shrink.rebuild import own_weights, rebuild

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from stillhouse.recipe import WidthConfig

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types whose layers have the shapes that this module cuts."""

LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")

HIDDEN, NEURONS, QUERIES, KEYS, WHOLE = "hidden", "neurons", "queries", "keys", "whole"

AXES: dict[str, tuple[str, ...]] = {
    "embed_tokens.weight": (WHOLE, HIDDEN),
    "lm_head.weight": (WHOLE, HIDDEN),
    "norm.weight": (HIDDEN,),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
    "q_proj.weight": (QUERIES, HIDDEN),
    "q_proj.bias": (QUERIES,),
    "k_proj.weight": (KEYS, HIDDEN),
    "k_proj.bias": (KEYS,),
    "v_proj.weight": (KEYS, HIDDEN),
    "v_proj.bias": (KEYS,),
    "o_proj.weight": (HIDDEN, QUERIES),
    "o_proj.bias": (HIDDEN,),
    "q_norm.weight": (WHOLE,),
    "k_norm.weight": (WHOLE,),
    "gate_proj.weight": (NEURONS, HIDDEN),
    "gate_proj.bias": (NEURONS,),
    "up_proj.weight": (NEURONS, HIDDEN),
    "up_proj.bias": (NEURONS,),
    "down_proj.weight": (HIDDEN, NEURONS),
    "down_proj.bias": (HIDDEN,),
}
"""What each axis of each parameter runs over, by the last two parts of its name."""


@dataclass(frozen=True)
class Widths:
    """The sizes that width pruning changes."""

    hidden: int
    neurons: int
    kv_heads: int
    queries_per_group: int
    head_dim: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Widths:
        """Read the sizes of a supported model."""
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        groups = config.num_key_value_heads
        return cls(config.hidden_size, config.intermediate_size, groups, config.num_attention_heads // groups, head_dim)


@dataclass(frozen=True)
class WidthScores:
    """Importance: ``hidden`` [d]; ``neurons`` [f] and ``groups`` [n_kv] per layer."""

    hidden: Tensor
    neurons: list[Tensor]
    groups: list[Tensor]


class ActivationScore:
    """score_c = sqrt(sum over documents of (mean over tokens of |x_c|)^2), in float32."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None

    def add(self, activations: Tensor) -> None:
        """Take [B, T, C] activations, one document per row."""
        squares = activations.detach().float().abs().mean(dim=1).square().sum(dim=0)
        self._squares = squares if self._squares is None else self._squares + squares

    @property
    def value(self) -> Tensor:
        """The scores [C]."""
        assert self._squares is not None, "no activations were seen"
        return self._squares.sqrt()


def prune_width(
    model: PreTrainedModel, config: WidthConfig, documents: DocumentSet, *, probe: PreTrainedModel
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a narrower model, and notes on the choice that fit into JSON.

    ``probe`` is the model that is measured: ``model`` itself, or a copy of it that computes faster.
    Raises ModelError for an unsupported architecture or sizes that do not fit it.
    """
    if model.config.model_type not in SUPPORTED:
        raise ModelError(
            f"student.width: {type(model).__name__} ({model.config.model_type}) cannot be pruned in width; "
            f"supported: {', '.join(SUPPORTED)}; prune depth or vocabulary instead"
        )
    before = Widths.of(model)
    after = Widths(
        hidden=config.hidden_size or before.hidden,
        neurons=config.intermediate_size or before.neurons,
        kv_heads=config.num_key_value_heads or before.kv_heads,
        queries_per_group=before.queries_per_group,
        head_dim=before.head_dim,
    )
    _check_sizes(model, before, after)
    student = cut_width(model, width_scores(probe, documents), after)
    names = ("hidden", "neurons", "kv_heads")
    notes = {name: {"before": getattr(before, name), "after": getattr(after, name)} for name in names}
    return student, notes


def _check_sizes(model: PreTrainedModel, before: Widths, after: Widths) -> None:
    fields = {"hidden_size": "hidden", "intermediate_size": "neurons", "num_key_value_heads": "kv_heads"}
    for field, name in fields.items():
        had, wanted = getattr(before, name), getattr(after, name)
        if wanted > had:
            raise ModelError(f"student.width.{field}={wanted}: the source has {had}; give at most that")
    heads = after.kv_heads * after.queries_per_group
    # Llama's configuration insists on this although its layers do not need it.
    if hasattr(type(model.config), "validate_architecture") and after.hidden % heads:
        below, above = after.hidden // heads * heads, (after.hidden // heads + 1) * heads
        nearest = [str(size) for size in (below, above) if 0 < size <= before.hidden]
        raise ModelError(
            f"student.width.hidden_size={after.hidden}: {type(model.config).__name__} wants a multiple of the "
            f"{heads} query heads; nearest: {' or '.join(nearest) or 'none, keep fewer key-value heads'}"
        )


@torch.no_grad()
def width_scores(model: PreTrainedModel, documents: DocumentSet) -> WidthScores:
    """Measure activations over the calibration documents.

    Hidden channels: outputs of every RMSNorm over the residual stream, the final one included,
    summed over norms. Neurons: the input of ``down_proj``. Groups: per query head the L2 norm over
    its width of the input of ``o_proj``, summed over the group's heads.
    """
    parts, widths = split_model(model), Widths.of(model)
    layers = model.get_submodule(f"{model.base_model_prefix}.layers")
    assert isinstance(layers, nn.ModuleList)
    norms = [layer.get_submodule(name) for layer in layers for name in LAYER_NORMS]
    norms.append(parts.backbone.get_submodule("norm"))
    hidden = [ActivationScore() for _ in norms]
    neurons = [ActivationScore() for _ in layers]
    heads = [ActivationScore() for _ in layers]

    def head_norms(x: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(x.float().reshape(*x.shape[:-1], -1, widths.head_dim), dim=-1)
        return norms

    with _scoring() as watch:
        for norm, score in zip(norms, hidden, strict=True):
            watch(norm, score, None)
        for layer, neuron_score, head_score in zip(layers, neurons, heads, strict=True):
            watch(layer.get_submodule("mlp.down_proj"), neuron_score, lambda x: x)
            watch(layer.get_submodule("self_attn.o_proj"), head_score, head_norms)
        for batch in document_batches(documents, model.device):
            parts.states(batch)
    return WidthScores(
        hidden=torch.stack([score.value for score in hidden]).sum(dim=0),
        neurons=[score.value for score in neurons],
        groups=[score.value.view(widths.kv_heads, -1).sum(dim=1) for score in heads],
    )


@contextmanager
def _scoring() -> Iterator[Callable[[nn.Module, ActivationScore, Callable[[Tensor], Tensor] | None], None]]:
    """Yield a function that feeds a module's output, or its transformed input, to a score."""
    handles = []

    def watch(module: nn.Module, score: ActivationScore, of_input: Callable[[Tensor], Tensor] | None) -> None:
        if of_input is None:
            handles.append(module.register_forward_hook(lambda _module, _inputs, output: score.add(output)))
        else:
            handles.append(module.register_forward_pre_hook(lambda _module, inputs: score.add(of_input(inputs[0]))))

    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def top_indices(scores: Tensor, keep: int) -> Tensor:
    """Return the indices of the ``keep`` largest scores [C] in their original order; of equals the first stays."""
    ranked = torch.sort(scores, descending=True, stable=True).indices
    return ranked[:keep].sort().values


def cut_width(model: PreTrainedModel, scores: WidthScores, widths: Widths) -> PreTrainedModel:
    """Return a new model of ``widths`` that keeps the channels, neurons and groups of highest score."""
    hidden = top_indices(scores.hidden, widths.hidden)
    neurons = [top_indices(score, widths.neurons) for score in scores.neurons]
    groups = [top_indices(score, widths.kv_heads) for score in scores.groups]
    keys = [_blocks(group, widths.head_dim) for group in groups]
    queries = [_blocks(group, widths.head_dim * widths.queries_per_group) for group in groups]

    weights = {}
    for name, tensor in own_weights(model).items():
        match = re.search(r"\.layers\.(\d+)\.", name)
        layer = int(match[1]) if match else 0
        kept = {HIDDEN: hidden, NEURONS: neurons[layer], QUERIES: queries[layer], KEYS: keys[layer]}
        weights[name] = _cut(tensor, _axes(name), kept)
    heads = widths.kv_heads * widths.queries_per_group
    changes = {
        "hidden_size": widths.hidden,
        "intermediate_size": widths.neurons,
        "num_key_value_heads": widths.kv_heads,
        "num_attention_heads": heads,
        "head_dim": widths.head_dim,
    }
    return rebuild(model, changes, weights)


def _axes(name: str) -> tuple[str, ...]:
    suffix = ".".join(name.split(".")[-2:])
    if suffix not in AXES:
        raise ModelError(f"student.width: parameter {name} is not one of a Llama-like model; it cannot be cut")
    return AXES[suffix]


def _cut(tensor: Tensor, axes: tuple[str, ...], kept: dict[str, Tensor]) -> Tensor:
    result = tensor
    for axis, meaning in enumerate(axes):
        if meaning != WHOLE:
            result = result.index_select(axis, kept[meaning].to(result.device))
    return result.clone() if result is tensor else result


def _blocks(indices: Tensor, width: int) -> Tensor:
    """Expand block indices into the indices of their ``width`` members each."""
    members = indices[:, None] * width + torch.arange(width, device=indices.device)
    return members.flatten()
