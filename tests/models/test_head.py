"""The two parts of a model reproduce it, whatever its family does to its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model_families import FAMILIES, family_model
from stillhouse.errors import ModelError
from stillhouse.models.head import (
    apply_head,
    decoder_layers,
    final_norm,
    probe_batch,
    recorded_layers,
    split_model,
    verify_head,
    verify_isolation,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_reproduce_the_logits_of_every_family(family: str) -> None:
    model = family_model(family)
    verify_head(model)
    parts, batch = split_model(model), probe_batch(model)
    ours = apply_head(parts.projection(parts.hidden(batch)))
    theirs = model(input_ids=batch.input_ids).logits[:, :-1].reshape(-1, 61)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "opt"])
def test_packed_documents_do_not_see_each_other(family: str) -> None:
    model = family_model(family)
    verify_isolation(model)
    parts = split_model(model)
    alone, packed = parts.hidden(probe_batch(model)), parts.hidden(probe_batch(model, packed=True))
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4)


def test_a_family_whose_packed_documents_see_each_other_is_refused() -> None:
    with pytest.raises(ModelError, match=r"optimisation\.layout=packed: OPTForCausalLM.*layout: padded"):
        verify_isolation(family_model("opt"))


def test_softcap_scale_and_bias_are_found() -> None:
    assert split_model(family_model("gemma2")).softcap == 0.05
    assert split_model(family_model("cohere")).scale == 0.0625
    assert split_model(family_model("granite")).scale == 1 / 8
    assert split_model(family_model("phi")).head.bias is not None


def test_a_model_that_does_more_to_its_logits_is_refused_by_name() -> None:
    model = family_model("llama")
    plain_forward = model.forward

    def forward(**arguments: object) -> object:
        output = plain_forward(**arguments)
        output.logits = output.logits * 1.5
        return output

    model.forward = forward
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*not reproduced"):
        verify_head(model)


def test_attention_that_mixes_packed_documents_is_refused() -> None:
    model = family_model("llama")
    backbone = model.model
    plain_forward = backbone.forward

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> object:
        return plain_forward(input_ids=input_ids, use_cache=use_cache)

    backbone.forward = forward
    with pytest.raises(ModelError, match=r"optimisation\.layout=packed"):
        verify_isolation(model)


def test_a_backbone_without_position_ids_refuses_packed_batches() -> None:
    model = family_model("llama")
    plain_forward = model.model.forward
    model.model.forward = lambda input_ids, use_cache, **rest: plain_forward(input_ids=input_ids, use_cache=use_cache)
    verify_head(model)
    with pytest.raises(ModelError, match=r"optimisation\.layout=packed.*takes no position_ids"):
        split_model(model).hidden(probe_batch(model, packed=True))


def test_hidden_states_are_row_major_at_the_positions_before_targets() -> None:
    model = family_model("llama")
    parts, batch = split_model(model), probe_batch(model)
    states = parts.states(batch)
    expected = torch.stack([states[b, t - 1] for b in range(2) for t in range(1, 6)])
    assert torch.equal(parts.hidden(batch), expected)


def test_recorded_layers_are_the_outputs_of_the_layers() -> None:
    model = family_model("qwen3")
    batch = probe_batch(model)
    with torch.no_grad(), recorded_layers(model, (1, 3)) as outputs:
        split_model(model).states(batch)
    assert not any(layer._forward_hooks for layer in decoder_layers(model))
    reference = model.model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(outputs[1], reference[2])
    torch.testing.assert_close(model.model.norm(outputs[3]), reference[4])
    with pytest.raises(ModelError, match=r"layer 4: .* layers 0 to 3"), recorded_layers(model, (4,)):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_reads_a_layer_as_the_head_gets_it(family: str) -> None:
    model = family_model(family)
    batch, parts = probe_batch(model), split_model(model)
    with torch.no_grad(), recorded_layers(model, [3]) as outputs:
        expected = parts.hidden(batch)
    torch.testing.assert_close(final_norm(model)(outputs[3])[batch.predictor_mask], expected, rtol=1e-4, atol=1e-5)


def test_a_model_whose_norm_is_not_all_that_follows_its_layers_is_refused() -> None:
    model = family_model("llama")
    plain = model.model.forward

    def doubled(**arguments: Any) -> Any:
        output = plain(**arguments)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    model.model.forward = doubled
    with pytest.raises(ModelError, match="LlamaForCausalLM: no final norm found"):
        final_norm(model)


def test_models_without_a_linear_head_or_layers_are_refused() -> None:
    model = family_model("llama")
    model.set_output_embeddings(nn.Identity())
    with pytest.raises(ModelError, match="linear head"):
        split_model(model)
    with pytest.raises(ModelError, match="decoder layers"):
        decoder_layers(nn.Linear(2, 2))


def test_evaluation_mode_is_left_as_it_was() -> None:
    model = family_model("llama").train()
    verify_head(model)
    assert model.training
