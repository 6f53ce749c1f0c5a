"""Fewer decoder layers: which to keep, and the model that keeps them (methods.md section 11).

Embedding, norms and head are copied. Layers keep their order and their per-layer configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.batching import make_micro_batches
from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.head import decoder_layers
from stillhouse.models.shrink.calibration import document_batches, nll_sum
from stillhouse.models.shrink.rebuild import own_weights, rebuild
from stillhouse.models.shrink.replay import LayerReplay

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from stillhouse.recipe import DepthConfig

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class BlockScores:
    """NLL (nats/target) of the whole model, and without the block that starts at each layer."""

    whole: float
    without: dict[int, float]

    @property
    def best_start(self) -> int:
        """The start of the block that is missed least; the earliest one of equals."""
        return min(self.without, key=lambda start: (self.without[start], start))


def prune_depth(
    model: PreTrainedModel, config: DepthConfig, documents: DocumentSet, *, probe: PreTrainedModel
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model with ``config.layers`` layers, and notes on the choice that fit into JSON.

    ``probe`` is the model that is measured: ``model`` itself, or a copy of it that computes faster.
    Raises ModelError when the number of layers does not fit the model.
    """
    total, keep = len(decoder_layers(model)), config.layers
    fewest = 2 if config.method == "contiguous" else 1
    if not fewest <= keep < total:
        raise ModelError(
            f"student.depth.layers={keep}: the source has {total} layers; with method {config.method} "
            f"give {fewest} to {total - 1}"
        )
    notes: dict[str, Any] = {"method": config.method, "layers_before": total}
    if config.method == "even":
        kept = even_layers(total, keep)
    elif config.method == "block_influence":
        influence = block_influence(probe, documents)
        notes["block_influence"] = [round(value, 6) for value in influence]
        kept = most_influential(influence, keep)
    else:
        scores = block_scores(probe, documents, total - keep)
        start = scores.best_start
        notes |= {"nll_before": scores.whole, "nll_after": scores.without[start], "nll_by_start": scores.without}
        kept = [index for index in range(total) if not start <= index < start + total - keep]
    notes["kept_layers"] = kept
    return keep_layers(model, kept), notes


def even_layers(total: int, keep: int) -> list[int]:
    """Return ``keep`` evenly spaced layers of ``total``, the first and the last among them."""
    if keep == 1:
        return [0]
    # floor(i * (total - 1) / (keep - 1) + 1/2) in integers, free of rounding.
    return [(2 * i * (total - 1) + keep - 1) // (2 * (keep - 1)) for i in range(keep)]


def most_influential(influence: Sequence[float], keep: int) -> list[int]:
    """Return the ``keep`` layers of largest influence, in model order; of equals the earlier stays."""
    ranked = sorted(range(len(influence)), key=lambda index: (-influence[index], index))
    return sorted(ranked[:keep])


def mean_cosine_distance(before: Tensor, after: Tensor) -> Tensor:
    """Return 1 - cos(before, after) averaged over tokens, in float32; both [..., T, H]."""
    return 1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1).mean()


def block_influence(model: PreTrainedModel, documents: DocumentSet) -> list[float]:
    """Return BI_l = 1 - mean cos(h_in, h_out) per layer, averaged over all tokens (Men et al. 2024, 2403.03853)."""
    replay = LayerReplay(model)
    sums, tokens = [0.0] * len(replay.layers), 0
    for batch in document_batches(documents, model.device):
        states = replay.record(batch).states
        length = batch.input_ids.numel()
        tokens += length
        for index in range(len(sums)):
            sums[index] += mean_cosine_distance(states[index], states[index + 1]).item() * length
    return [value / tokens for value in sums]


def block_scores(model: PreTrainedModel, documents: DocumentSet, length: int) -> BlockScores:
    """Measure NLL without each block of ``length`` layers that leaves the first and the last layer.

    The states before every layer are recorded once per document, so removing a block costs only
    the layers behind it.
    """
    replay = LayerReplay(model)
    total = len(replay.layers)
    starts = range(1, total - length)
    whole, targets = 0.0, 0
    without = dict.fromkeys(starts, 0.0)
    with torch.no_grad():
        for batch in _padded_batches(documents, model.device):
            recording = replay.record(batch)
            targets += len(batch.labels)
            whole += _final_nll(replay, recording.states[-1], batch)
            for start in starts:
                behind = range(start + length, total)
                final = replay.run(recording, recording.states[start], behind)
                without[start] += _final_nll(replay, final, batch)
    return BlockScores(whole / targets, {start: value / targets for start, value in without.items()})


def _padded_batches(documents: DocumentSet, device: torch.device) -> Iterator[Batch]:
    """Yield documents of like length together: NLL is summed over targets alone, so padding does not count."""
    batches = make_micro_batches(
        documents, np.arange(len(documents)), micro_batch_tokens=BATCH_TOKENS, layout="padded", pad_id=0
    )
    return (batch.to(device) for batch in batches)


def _final_nll(replay: LayerReplay, state: Tensor, batch: Batch) -> float:
    """The sum of NLL over a batch's targets, from the state [1, T, H] behind the last layer."""
    hidden = replay.norm(state)[batch.predictor_mask]
    return nll_sum(replay.parts.projection(hidden), batch.labels)


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a new model with only the layers ``kept``, renumbered, and their per-layer configuration."""
    layers = decoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)")
    renumbered = {old: new for new, old in enumerate(kept)}
    weights = {}
    for name, tensor in own_weights(model).items():
        match = pattern.fullmatch(name)
        if match is None:
            weights[name] = tensor.clone()
        elif int(match[1]) in renumbered:
            weights[f"{prefix}.{renumbered[int(match[1])]}.{match[2]}"] = tensor.clone()
    return rebuild(model, _layer_config(model.config, kept, len(layers)), weights)


def _layer_config(config: PreTrainedConfig, kept: Sequence[int], total: int) -> dict[str, Any]:
    """The configuration's changes: the number of layers, and every list with one entry per layer."""
    changes: dict[str, Any] = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(kept)}
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == total and "layer" in key:
            changes[key] = [value[index] for index in kept]
    return changes
