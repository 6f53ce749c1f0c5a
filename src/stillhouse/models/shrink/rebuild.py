"""A new model from a changed configuration and a changed set of weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.models.load import misfits
from stillhouse.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def own_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the state dict without tied aliases: of names that share storage the first stays."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            weights[name] = tensor.detach()
    return weights


def rebuild(model: PreTrainedModel, changes: Mapping[str, Any], weights: dict[str, Tensor]) -> PreTrainedModel:
    """Return a model of the same class with ``changes`` to its configuration and exactly ``weights``.

    transformers itself lays the model out, so what comes back is what a reload of its saved folder
    gives. ``weights`` must not share memory with ``model``. Raises ModelError when they do not fit.
    """
    sources = {p.data_ptr() for p in model.parameters()}
    assert not any(t.data_ptr() in sources for t in weights.values()), "the student would share the source's memory"
    config = type(model.config).from_dict({**model.config.to_dict(), **changes})
    with quiet_transformers():
        loaded: Any = type(model).from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    student, info = loaded
    wrong = sorted(misfits(info) | {f"{name} is not expected" for name in info["unexpected_keys"]})
    if wrong:
        raise ModelError(
            f"student: pruned weights do not fit a {type(model).__name__} ({', '.join(wrong[:3])}); this "
            "architecture's layers depend on their position, and it cannot be pruned"
        )
    student.config._name_or_path = ""
    student.generation_config = copy.deepcopy(model.generation_config)
    result: PreTrainedModel = student.to(model.device).eval()
    return result
