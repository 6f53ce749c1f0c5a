"""The batch's own views."""

from __future__ import annotations

import torch

from stillhouse.data.batch import Batch


def make() -> Batch:
    mask = torch.tensor([[False, True, False, True], [False, True, True, False]])
    return Batch(
        input_ids=torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]]),
        position_ids=torch.arange(4).repeat(2, 1),
        loss_mask=mask,
        domain_ids=torch.tensor([0, 0, 1, 1]),
        document_ids=torch.tensor([3, 3, 4, 4]),
    )


def test_labels_and_predictors_are_row_major_and_one_apart() -> None:
    batch = make()
    assert batch.labels.tolist() == [6, 8, 10, 11]
    assert batch.input_ids[batch.predictor_mask].tolist() == [5, 7, 9, 10]


def test_to_moves_every_tensor() -> None:
    moved = make().to("meta")
    tensors = (moved.input_ids, moved.position_ids, moved.loss_mask, moved.domain_ids, moved.document_ids)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_without_targets_keeps_the_tokens_and_weighs_nothing() -> None:
    batch = make().without_targets()
    assert torch.equal(batch.input_ids, make().input_ids)
    assert batch.labels.numel() == batch.domain_ids.numel() == batch.document_ids.numel() == 0
    assert not batch.predictor_mask.any()
