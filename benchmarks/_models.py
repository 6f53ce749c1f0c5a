"""Models and rows as torch sees them, for the contestants that run in our own environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from _measure import RowBatch
from transformers import PreTrainedModel

from stillhouse.data.batch import Batch
from stillhouse.models.load import load_model
from stillhouse.recipe import ModelConfig


def folder_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model folder in ``dtype``, in evaluation mode."""
    return load_model(ModelConfig(path=str(folder)), dtype=dtype, base_dir=folder)


def as_batch(rows: RowBatch, numbers: Sequence[int] | None = None) -> Batch:
    """Right-pad the rows to one batch [B, T] of one domain; ``numbers``: the rows' documents (None: from 0)."""
    width = max(len(row.input_ids) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.input_ids)] = torch.tensor(row.input_ids)
        loss_mask[index, : len(row.loss_mask)] = torch.tensor(row.loss_mask)
    ids = torch.arange(len(rows)) if numbers is None else torch.tensor(numbers)
    documents = ids.repeat_interleave(loss_mask.sum(dim=1))
    return Batch(
        input_ids=input_ids,
        position_ids=torch.arange(width).expand(len(rows), width).contiguous(),
        loss_mask=loss_mask,
        domain_ids=torch.zeros_like(documents),
        document_ids=documents,
    )
