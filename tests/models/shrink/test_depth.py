"""Which layers go, and that the rest computes what it did."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from model_families import family_model
from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.head import apply_head, decoder_layers, probe_batch, split_model
from stillhouse.models.shrink.calibration import document_batches
from stillhouse.models.shrink.depth import (
    BlockScores,
    block_influence,
    block_scores,
    even_layers,
    keep_layers,
    mean_cosine_distance,
    most_influential,
    prune_depth,
)
from stillhouse.recipe import DepthConfig

PRUNABLE = ("llama", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3", "cohere", "granite", "phi")


def mean_nll(model: PreTrainedModel, documents: DocumentSet) -> float:
    """Another derivation: whole logits of the plain model, log-softmax, gather."""
    total, count = 0.0, 0
    for batch in document_batches(documents, torch.device("cpu")):
        log_probs = model(input_ids=batch.input_ids).logits[0, :-1].double().log_softmax(-1)
        targets = batch.loss_mask[0, 1:]
        labels = batch.input_ids[0, 1:]
        total -= log_probs.gather(1, labels[:, None])[targets].sum().item()
        count += int(targets.sum())
    return total / count


def test_even_layers() -> None:
    assert even_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert even_layers(32, 16) == [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31]
    assert even_layers(5, 1) == [0]


def test_block_influence_of_one_rotation() -> None:
    # cos([1, 0], [1, 1]) = 1/sqrt(2), so BI = 1 - 0.707107
    value = mean_cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    assert value.item() == pytest.approx(0.292893, abs=1e-5)


def test_the_least_influential_layers_go_and_the_earlier_of_equals_stays() -> None:
    assert most_influential([0.9, 0.1, 0.2, 0.1, 0.5], 4) == [0, 1, 2, 4]


def test_block_influence_follows_the_hidden_states(documents: DocumentSet) -> None:
    model = family_model("llama")
    passes: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, args, output: passes.append((args[0].double(), output.double())))
    for batch in document_batches(documents, torch.device("cpu")):
        model(input_ids=batch.input_ids)
    distances = [(1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))[0] for a, b in passes]
    expected = [torch.cat(distances[index::4]).mean().item() for index in range(4)]
    assert block_influence(model, documents) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", PRUNABLE)
def test_each_block_is_scored_as_the_model_without_it(family: str, documents: DocumentSet) -> None:
    model = family_model(family)
    scores = block_scores(model, documents, 1)
    assert scores.whole == pytest.approx(mean_nll(model, documents), abs=1e-4)
    assert list(scores.without) == [1, 2]  # the first and the last layer stay
    for start, value in scores.without.items():
        student = keep_layers(model, [i for i in range(4) if i != start])
        assert value == pytest.approx(mean_nll(student, documents), abs=1e-4)


def test_the_earliest_of_equal_blocks_goes() -> None:
    assert BlockScores(1.0, {1: 2.0, 2: 1.5, 3: 1.5}).best_start == 2


@pytest.mark.parametrize("family", [*PRUNABLE, "gpt2", "gpt_neox", "opt"])
def test_kept_layers_compute_what_a_model_stripped_in_place_does(family: str) -> None:
    model, batch = family_model(family), probe_batch(family_model(family))
    student = keep_layers(model, [0, 3])
    layers = decoder_layers(model)
    parent = next(m for m in model.modules() if any(child is layers for child in m.children()))
    name = next(n for n, child in parent.named_children() if child is layers)
    setattr(parent, name, nn.ModuleList([layers[0], layers[3]]))
    if hasattr(model.config, "layer_types"):  # kept beside the layers by some models
        model.config.layer_types = [model.config.layer_types[i] for i in (0, 3)]
    parts, theirs = split_model(student), split_model(model)
    ours = apply_head(parts.projection(parts.hidden(batch)))
    torch.testing.assert_close(ours, apply_head(theirs.projection(theirs.hidden(batch))), rtol=1e-4, atol=1e-5)


def test_the_student_owns_its_memory_and_its_layers_are_renumbered() -> None:
    model = family_model("llama")
    student = keep_layers(model, [0, 2, 3])
    assert {p.data_ptr() for p in model.parameters()}.isdisjoint({p.data_ptr() for p in student.parameters()})
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]
    assert student.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == 4


def test_per_layer_configuration_goes_with_its_layers() -> None:
    smollm = keep_layers(family_model("smollm3"), [0, 1, 3])
    assert smollm.config.no_rope_layers == [1, 0, 0]
    source = family_model("gemma3")
    assert keep_layers(source, [1, 3]).config.layer_types == [source.config.layer_types[i] for i in (1, 3)]


@pytest.mark.parametrize("method", ["contiguous", "block_influence", "even"])
def test_methods_keep_the_wanted_number(method: str, documents: DocumentSet) -> None:
    model = family_model("llama")
    config = DepthConfig.model_validate({"layers": 2, "method": method})
    student, notes = prune_depth(model, config, documents, probe=model)
    assert len(student.model.layers) == len(notes["kept_layers"]) == 2
    if method != "block_influence":
        assert notes["kept_layers"] == [0, 3]


def test_the_contiguous_block_is_the_one_missed_least(documents: DocumentSet) -> None:
    model = family_model("llama")
    student, notes = prune_depth(model, DepthConfig(layers=3), documents, probe=model)
    assert notes["nll_after"] == min(notes["nll_by_start"].values())
    assert mean_nll(student, documents) == pytest.approx(notes["nll_after"], abs=1e-4)


@pytest.mark.parametrize(("layers", "method", "allowed"), [(4, "even", "1 to 3"), (1, "contiguous", "2 to 3")])
def test_impossible_depths_name_the_field(layers: int, method: str, allowed: str, documents: DocumentSet) -> None:
    model = family_model("llama")
    config = DepthConfig.model_validate({"layers": layers, "method": method})
    with pytest.raises(ModelError, match=rf"student\.depth\.layers={layers}: the source has 4 layers.*{allowed}"):
        prune_depth(model, config, documents, probe=model)


def test_layers_that_do_not_simply_follow_each_other_are_refused(documents: DocumentSet) -> None:
    model = family_model("llama")
    model.model.register_forward_hook(lambda _m, _i, output: setattr(output, "last_hidden_state", output[0] * 2))
    with pytest.raises(ModelError, match=r"student\.depth: .*not followed by its final norm alone"):
        block_scores(model, documents, 1)
    del model.model.norm
    with pytest.raises(ModelError, match=r"student\.depth: LlamaModel has no final norm"):
        block_scores(model, documents, 1)
