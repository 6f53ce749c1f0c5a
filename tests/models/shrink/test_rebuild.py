"""A student is laid out anew, and weights that do not fit are refused."""

from __future__ import annotations

import pytest
import torch

from model_families import family_model
from stillhouse.errors import ModelError
from stillhouse.models.load import model_fingerprint
from stillhouse.models.shrink.rebuild import own_weights, rebuild


def test_tied_names_are_kept_once() -> None:
    weights = own_weights(family_model("llama"))
    assert "model.embed_tokens.weight" in weights
    assert "lm_head.weight" not in weights
    assert "lm_head.weight" in own_weights(family_model("llama_bias"))


def test_generation_settings_dtype_and_attention_follow() -> None:
    model = family_model("llama").to(torch.bfloat16)
    model.generation_config.max_new_tokens = 7
    student = rebuild(model, {}, {name: tensor.clone() for name, tensor in own_weights(model).items()})
    assert student.dtype == torch.bfloat16
    assert student.generation_config.max_new_tokens == 7
    assert student.generation_config is not model.generation_config
    assert student.config._attn_implementation == model.config._attn_implementation
    assert model_fingerprint(student) == model_fingerprint(model)


@pytest.mark.parametrize("change", ["drop", "add", "reshape"])
def test_weights_that_do_not_fit_are_refused(change: str) -> None:
    model = family_model("llama")
    weights = {name: tensor.clone() for name, tensor in own_weights(model).items()}
    if change == "drop":
        del weights["model.norm.weight"]
    elif change == "add":
        weights["model.layers.9.extra"] = torch.zeros(1)
    else:
        weights["model.norm.weight"] = torch.zeros(3)
    with pytest.raises(ModelError, match=r"student: pruned weights do not fit a LlamaForCausalLM"):
        rebuild(model, {}, weights)


def test_sharing_memory_with_the_source_is_our_own_mistake() -> None:
    model = family_model("llama")
    with pytest.raises(AssertionError, match="share the source's memory"):
        rebuild(model, {}, own_weights(model))
