"""Importance by hand, shapes, and that keeping everything changes nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from model_families import family_model, random_documents
from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.head import probe_batch, verify_head
from stillhouse.models.load import model_fingerprint
from stillhouse.models.save import save_model
from stillhouse.models.shrink.width import (
    ActivationScore,
    Widths,
    WidthScores,
    cut_width,
    prune_width,
    top_indices,
    width_scores,
)
from stillhouse.recipe import WidthConfig

SUPPORTED = ("llama", "llama_bias", "mistral", "qwen2", "qwen3", "smollm3")


def test_scores_by_hand() -> None:
    # means of |x| over tokens: row 0 [2, 0, 2], row 1 [0, 1, 2]; roots of sums of squares: 2, 1, sqrt(8)
    score = ActivationScore()
    score.add(torch.tensor([[[1.0, 0, 2], [-3, 0, 2]], [[0, 1, 2], [0, 1, 2]]]))
    torch.testing.assert_close(score.value, torch.tensor([2, 1, 2.828427]))


def test_scores_do_not_depend_on_how_documents_are_batched() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    together, apart = ActivationScore(), ActivationScore()
    together.add(x)
    for row in x:
        apart.add(row[None])
    torch.testing.assert_close(together.value, apart.value)


def test_top_indices_keep_the_order_and_the_first_of_equals() -> None:
    assert top_indices(torch.tensor([1.0, 3, 2, 3, 2]), 3).tolist() == [1, 2, 3]


def test_measured_scores_are_those_of_the_named_activations(documents: DocumentSet) -> None:
    model = family_model("llama")
    document = documents.select([0])
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]
    layer.mlp.down_proj.register_forward_pre_hook(lambda _m, inputs: seen.update(neurons=inputs[0]))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, inputs: seen.update(heads=inputs[0]))
    norms: list[torch.Tensor] = []
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.register_forward_hook(lambda _m, _i, output: norms.append(output))
    scores = width_scores(model, document)
    # one document: the root of one square is the mean itself
    torch.testing.assert_close(scores.neurons[1], seen["neurons"][0].abs().mean(0))
    heads = seen["heads"][0].view(-1, 4, 4).norm(dim=-1).mean(0)
    torch.testing.assert_close(scores.groups[1], torch.stack([heads[:2].sum(), heads[2:].sum()]))
    assert len(norms) == 2 * 4 + 1
    torch.testing.assert_close(scores.hidden, sum(norm[0].abs().mean(0) for norm in norms))


@pytest.mark.parametrize("family", SUPPORTED)
def test_keeping_everything_is_the_identity(family: str, documents: DocumentSet) -> None:
    model = family_model(family)
    student = cut_width(model, width_scores(model, documents), Widths.of(model))
    assert model_fingerprint(student) == model_fingerprint(model)
    batch = probe_batch(model)
    assert torch.equal(student(input_ids=batch.input_ids).logits, model(input_ids=batch.input_ids).logits)


@pytest.mark.parametrize("family", SUPPORTED)
def test_removing_what_is_zero_changes_nothing_but_the_norms_mean(family: str) -> None:
    """Neurons and groups that contribute nothing leave without a trace."""
    model = family_model(family)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 8:] = 0
            layer.self_attn.o_proj.weight[:, 8:] = 0  # the second group: heads 2 and 3 of width 4
    scores = WidthScores(
        hidden=torch.ones(16),
        neurons=[torch.tensor([1.0] * 8 + [0.0] * 16)] * 4,
        groups=[torch.tensor([1.0, 0.0])] * 4,
    )
    student = cut_width(model, scores, Widths(16, 8, 1, 2, 4))
    batch = probe_batch(model)
    torch.testing.assert_close(student(input_ids=batch.input_ids).logits, model(input_ids=batch.input_ids).logits)
    assert student.config.num_attention_heads == 2
    assert student.config.head_dim == 4


@pytest.mark.parametrize("family", SUPPORTED)
def test_sliced_weights_are_the_chosen_ones(family: str, documents: DocumentSet) -> None:
    model = family_model(family)
    config = WidthConfig(hidden_size=12, intermediate_size=10, num_key_value_heads=1)
    student, notes = prune_width(model, config, documents, probe=model)
    scores = width_scores(model, documents)
    hidden, neurons = top_indices(scores.hidden, 12), top_indices(scores.neurons[2], 10)
    group = int(top_indices(scores.groups[2], 1))
    ours, theirs = student.model.layers[2], model.model.layers[2]
    assert torch.equal(ours.mlp.gate_proj.weight, theirs.mlp.gate_proj.weight[neurons][:, hidden])
    assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight[hidden][:, neurons])
    queries, keys = slice(8 * group, 8 * group + 8), slice(4 * group, 4 * group + 4)
    assert torch.equal(ours.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight[queries][:, hidden])
    assert torch.equal(ours.self_attn.k_proj.weight, theirs.self_attn.k_proj.weight[keys][:, hidden])
    assert torch.equal(ours.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight[hidden][:, queries])
    if theirs.self_attn.q_proj.bias is not None:
        assert torch.equal(ours.self_attn.q_proj.bias, theirs.self_attn.q_proj.bias[queries])
    if family == "qwen3":
        assert torch.equal(ours.self_attn.k_norm.weight, theirs.self_attn.k_norm.weight)
    assert notes == {
        "hidden": {"before": 16, "after": 12},
        "neurons": {"before": 24, "after": 10},
        "kv_heads": {"before": 2, "after": 1},
    }
    verify_head(student)


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_saved_student_reloads_bit_for_bit(
    family: str,
    documents: DocumentSet,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = family_model(family)
    student, _ = prune_width(model, WidthConfig(hidden_size=12, num_key_value_heads=1), documents, probe=model)
    folder = tmp_path_factory.mktemp("width") / "m"
    save_model(student, tiny_tokenizer, folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert model_fingerprint(reloaded) == model_fingerprint(student)
    batch = probe_batch(student)
    assert torch.equal(reloaded(input_ids=batch.input_ids).logits, student(input_ids=batch.input_ids).logits)
    if student.config.tie_word_embeddings:
        assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()


def test_impossible_widths_name_the_field_and_what_is_allowed(documents: DocumentSet) -> None:
    model = family_model("llama")
    with pytest.raises(ModelError, match=r"student\.width\.intermediate_size=25: the source has 24"):
        prune_width(model, WidthConfig(intermediate_size=25), documents, probe=model)
    with pytest.raises(ModelError, match=r"student\.width\.hidden_size=14: .*4 query heads; nearest: 12 or 16"):
        prune_width(model, WidthConfig(hidden_size=14), documents, probe=model)


def test_other_architectures_are_refused_with_the_list() -> None:
    model = family_model("gpt2")
    with pytest.raises(ModelError, match=r"student\.width: GPT2LMHeadModel .* supported: llama, mistral, qwen2"):
        prune_width(model, WidthConfig(hidden_size=8), random_documents(61), probe=model)


def test_an_unknown_parameter_is_refused(documents: DocumentSet) -> None:
    model = family_model("llama")
    scores = width_scores(model, documents)
    model.model.layers[0].register_parameter("gate", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(ModelError, match=r"parameter model\.layers\.0\.gate is not one of a Llama-like model"):
        cut_width(model, scores, Widths.of(model))
