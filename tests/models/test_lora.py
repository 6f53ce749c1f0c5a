"""Adapters start as nothing, train alone, and end inside the weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from model_families import family_model
from stillhouse.errors import MissingDependencyError, ModelError
from stillhouse.models.head import probe_batch, split_model, verify_head
from stillhouse.models.load import model_fingerprint
from stillhouse.models.lora import add_lora, merge_lora
from stillhouse.models.save import save_model
from stillhouse.recipe import LoraConfig

pytest.importorskip("peft", reason="the extra `lora` is not installed")


def test_adapters_change_nothing_at_first_and_train_alone() -> None:
    model, batch = family_model("llama"), probe_batch(family_model("llama"))
    before = model(input_ids=batch.input_ids).logits
    state = torch.get_rng_state()
    add_lora(model, LoraConfig(rank=2), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    verify_head(model)
    torch.testing.assert_close(model(input_ids=batch.input_ids).logits, before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert split_model(model).head is model.lm_head


def test_the_first_matrix_follows_the_seed() -> None:
    def drawn(seed: int) -> str:
        return model_fingerprint(add_lora(family_model("llama"), LoraConfig(rank=2), seed=seed))

    assert drawn(1) == drawn(1) != drawn(2)


def test_merging_keeps_the_function_and_leaves_a_plain_model(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = add_lora(family_model("qwen3"), LoraConfig(rank=2, alpha=3.0), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    batch = probe_batch(model)
    adapted = model(input_ids=batch.input_ids).logits
    plain = family_model("qwen3")
    assert not torch.allclose(plain(input_ids=batch.input_ids).logits, adapted, atol=1e-2)
    merged = merge_lora(model)
    torch.testing.assert_close(merged(input_ids=batch.input_ids).logits, adapted, rtol=1e-3, atol=1e-3)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in merged.parameters())
    save_model(merged, tiny_tokenizer, tmp_path / "m")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model_fingerprint(reloaded) == model_fingerprint(merged)


def test_merging_a_plain_model_does_nothing() -> None:
    model = family_model("llama")
    before = model_fingerprint(model)
    assert model_fingerprint(merge_lora(model)) == before


def test_unknown_targets_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"student\.lora\.target_modules=\('nowhere',\)"):
        add_lora(family_model("llama"), LoraConfig(target_modules=("nowhere",)), seed=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"stillhouse\[lora\]"):
        add_lora(family_model("llama"), LoraConfig(), seed=0)
