"""Make a student from a larger model: depth first, then width, then vocabulary."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.data.document import DocumentSet
from stillhouse.models.shrink.calibration import calibration_set
from stillhouse.models.shrink.depth import prune_depth
from stillhouse.models.shrink.vocabulary import prune_vocabulary
from stillhouse.models.shrink.width import prune_width

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillhouse.recipe import PrunedStudent


@dataclass(frozen=True)
class ShrunkStudent:
    """A pruned model and its tokenizer.

    ``vocabulary_map`` int64 [V_new] gives the source's id of each id, or is None when the
    vocabulary is the source's; with a map the data must be tokenized again with ``tokenizer``.
    ``notes`` say what was chosen and why, and fit into JSON.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    vocabulary_map: Tensor | None
    notes: dict[str, Any]


def build_student(
    source_model: PreTrainedModel,
    config: PrunedStudent,
    *,
    documents: DocumentSet,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    measure_dtype: torch.dtype | None = None,
) -> ShrunkStudent:
    """Prune ``source_model`` (left as it is) as ``config`` says.

    ``documents`` are the training documents: some of them, drawn with ``seed``, measure importance,
    and all of them count tokens. The model runs where it is; with ``measure_dtype`` a copy in that
    dtype is measured in its place (bfloat16 is about three times as fast on CPUs that have it),
    while the weights are taken from the model itself. Raises ModelError naming the recipe
    field when a size or an architecture does not fit.
    """
    model, vocabulary_map = source_model, None
    notes: dict[str, Any] = {"parameters_before": source_model.num_parameters()}
    if config.depth is not None or config.width is not None:
        calibration = calibration_set(documents, config.calibration_documents, seed=seed)
        notes["calibration_documents"] = len(calibration)
        notes["calibration_targets"] = int(calibration.num_targets.sum())
        if config.depth is not None:
            model, notes["depth"] = prune_depth(model, config.depth, calibration, probe=_probe(model, measure_dtype))
        if config.width is not None:
            model, notes["width"] = prune_width(model, config.width, calibration, probe=_probe(model, measure_dtype))
    if config.vocabulary is not None:
        model, tokenizer, vocabulary_map = prune_vocabulary(
            model, tokenizer, documents, min_count=config.vocabulary.min_count
        )
        notes["vocabulary"] = {"before": source_model.config.vocab_size, "after": len(vocabulary_map)}
    notes["parameters_after"] = model.num_parameters()
    return ShrunkStudent(model, tokenizer, vocabulary_map, notes)


def _probe(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model itself, or a copy of it in another dtype."""
    if dtype is None or dtype == model.dtype:
        return model
    probe = copy.deepcopy(model)
    torch.nn.Module.to(probe, dtype)
    return probe
