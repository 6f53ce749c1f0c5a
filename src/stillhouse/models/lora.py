"""Low-rank adapters through peft (Hu et al. 2021, arXiv 2106.09685): train few weights, then merge them."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.errors import MissingDependencyError, ModelError
from stillhouse.randomness import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.recipe import LoraConfig


def add_lora(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PreTrainedModel:
    """Put adapters into ``model`` in place and freeze everything else; returns the same model.

    The first adapter matrix is drawn from ``seed``, the second is zero, so the function does not
    change. Raises MissingDependencyError without peft, ModelError when no module has a target name.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingDependencyError("student.lora needs peft; run `pip install 'stillhouse[lora]'`")
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    targets = config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    # peft annotates alpha as an integer and divides by it all the same.
    alpha: Any = config.alpha
    peft_config = PeftConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    # peft draws from the global generator.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute that was renamed
        torch.manual_seed(derive_seed(seed, "lora"))
        try:
            get_peft_model(model, peft_config)
        except ValueError as error:
            raise ModelError(f"student.lora.target_modules={config.target_modules}: {error}") from error
    return model


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Add the adapters to the weights they adapt and remove them, in place; returns the same model.

    The result is a plain transformers model whose weights all train again. A model without
    adapters comes back as it is.
    """
    if importlib.util.find_spec("peft") is None:
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module.get_base_layer())
    if adapted:
        del model.peft_config
        model._hf_peft_config_loaded = False
        model.requires_grad_(True)
    return model
