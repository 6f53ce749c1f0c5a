"""A micro-batch as the models see it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Right-padded (or packed) documents.

    input_ids int64 [B, T]; position_ids int64 [B, T] restart at every document;
    loss_mask bool [B, T], True where a token is a target (never at position 0 of a document);
    domain_ids int64 [N] and document_ids int64 [N] belong to the N targets in row-major order
    (``document_ids`` index the DocumentSet that the batch was cut from).

    Right padding needs no attention mask: attention is causal, so a real token never sees the
    padding behind it, and padded positions are no targets. A packed batch (``packed`` True)
    relies on ``position_ids`` restarting, and the model must be called with ``use_cache=False``.
    """

    input_ids: Tensor
    position_ids: Tensor
    loss_mask: Tensor
    domain_ids: Tensor
    document_ids: Tensor
    packed: bool = False

    @property
    def labels(self) -> Tensor:
        """The target ids, int64 [N], row-major."""
        return self.input_ids[self.loss_mask]

    @property
    def predictor_mask(self) -> Tensor:
        """bool [B, T]: the positions whose hidden state predicts a target (one before it)."""
        mask = self.loss_mask.roll(-1, dims=1)
        mask[:, -1] = False
        return mask

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            loss_mask=self.loss_mask.to(device),
            domain_ids=self.domain_ids.to(device),
            document_ids=self.document_ids.to(device),
        )

    def without_targets(self) -> Batch:
        """Return the same documents with weight zero, for a rank whose share of a step is smaller."""
        mask = self.loss_mask.new_zeros(self.loss_mask.shape)
        none = self.domain_ids.new_zeros(0)
        return replace(self, loss_mask=mask, domain_ids=none, document_ids=none)
