"""A live teacher hands over the model's own distribution, and nothing of it moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model_families import FAMILIES, family_model
from stillhouse.errors import ModelError
from stillhouse.models.head import apply_head, probe_batch
from stillhouse.teachers.live import LiveTeacher

VOCAB = 61


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_the_models_distribution_over_the_real_ids(family: str) -> None:
    model, batch = family_model(family), probe_batch(family_model(family))
    expected = model(input_ids=batch.input_ids).logits[batch.predictor_mask][:, : VOCAB - 5].detach()
    teacher = LiveTeacher(model, vocabulary_map=None, vocab_size=VOCAB - 5)
    projection = teacher.targets(batch).projection
    assert projection.weight.shape[0] == VOCAB - 5
    torch.testing.assert_close(apply_head(projection), expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_frozen_and_its_targets_need_no_gradient() -> None:
    model = family_model("phi").train()
    teacher = LiveTeacher(model, vocabulary_map=None, vocab_size=VOCAB)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    targets = teacher.targets(probe_batch(model), (0, 3))
    tensors = [targets.projection.hidden, targets.projection.weight, targets.projection.bias, *targets.layers.values()]
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors)
    assert teacher.num_parameters == sum(p.numel() for p in model.parameters())


def test_the_whole_vocabulary_is_a_view_of_the_head() -> None:
    model = family_model("llama")
    projection = LiveTeacher(model, vocabulary_map=None, vocab_size=VOCAB).targets(probe_batch(model)).projection
    assert projection.weight.data_ptr() == model.lm_head.weight.data_ptr()


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_trimmed_vocabulary_is_read_and_scored_through_its_map(family: str) -> None:
    model = family_model(family)
    kept = torch.arange(1, VOCAB, 2)  # student id i is teacher id 2i + 1
    batch = probe_batch(model)
    student_batch = replace(batch, input_ids=batch.input_ids % len(kept))
    teacher = LiveTeacher(model, vocabulary_map=kept, vocab_size=len(kept))
    ours = apply_head(teacher.targets(student_batch).projection)
    own = model(input_ids=2 * student_batch.input_ids + 1).logits[batch.predictor_mask].detach()
    torch.testing.assert_close(ours, own[:, 1::2], rtol=1e-4, atol=1e-5)


def test_layers_are_taken_at_the_same_positions() -> None:
    model = family_model("gemma2")
    batch = probe_batch(model)
    targets = LiveTeacher(model, vocabulary_map=None, vocab_size=VOCAB).targets(batch, (0, 2))
    assert set(targets.layers) == {0, 2}
    states = model.model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(targets.layers[2], states[3][batch.predictor_mask])
    torch.testing.assert_close(targets.layers[0], states[1][batch.predictor_mask])


@pytest.mark.parametrize("kept", [None, torch.arange(1, VOCAB, 2)])
def test_the_last_layer_read_alone_is_the_model_itself(kept: torch.Tensor | None) -> None:
    model = family_model("llama")
    teacher = LiveTeacher(model, vocabulary_map=kept, vocab_size=VOCAB if kept is None else len(kept))
    batch = probe_batch(model)
    batch = batch if kept is None else replace(batch, input_ids=batch.input_ids % len(kept))
    targets = teacher.targets(batch, (3,))
    hidden = targets.layers[3].clone().requires_grad_()
    read = apply_head(teacher.reader()(hidden))
    torch.testing.assert_close(read, apply_head(targets.projection), rtol=1e-4, atol=1e-5)
    read.sum().backward()
    assert hidden.grad is not None
    assert all(p.grad is None for p in model.parameters())


def test_padding_is_never_seen() -> None:
    model = family_model("qwen2")
    batch = probe_batch(model)
    pad = torch.full((2, 3), 7)
    padded = replace(
        batch,
        input_ids=torch.cat([batch.input_ids, pad], 1),
        position_ids=torch.cat([batch.position_ids, torch.zeros_like(pad)], 1),
        loss_mask=torch.cat([batch.loss_mask, torch.zeros_like(pad, dtype=torch.bool)], 1),
    )
    teacher = LiveTeacher(model, vocabulary_map=None, vocab_size=VOCAB)
    torch.testing.assert_close(
        teacher.targets(padded).projection.hidden, teacher.targets(batch).projection.hidden, rtol=1e-5, atol=1e-6
    )


def test_a_batch_without_targets_gives_no_rows() -> None:
    model = family_model("llama")
    batch = probe_batch(model)
    empty = torch.zeros(0, dtype=torch.int64)
    none = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask), domain_ids=empty, document_ids=empty)
    teacher = LiveTeacher(model, vocabulary_map=None, vocab_size=VOCAB)
    assert teacher.targets(none).projection.hidden.shape == (0, 16)


@pytest.mark.parametrize(("kept", "size"), [(None, VOCAB + 1), (torch.tensor([0, VOCAB]), 2)])
def test_a_head_smaller_than_the_vocabulary_is_refused(kept: torch.Tensor | None, size: int) -> None:
    with pytest.raises(ModelError, match=r"teacher\.path: its head has 61 rows and the vocabulary needs 62"):
        LiveTeacher(family_model("llama"), vocabulary_map=kept, vocab_size=size)
