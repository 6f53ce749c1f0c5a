"""Sums per group over documents that are shared out among the ranks.

Every rank cuts the same list of micro-batches and takes every ``world_size``-th, so a document is
scored in the same batch whatever the world size. Where the list does not divide evenly the last
ranks repeat a batch with weight zero: all ranks then call the model equally often, which
sharded models (FSDP2) need, since each of their forward passes is a collective.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.batching import make_micro_batches
from stillhouse.data.document import DocumentSet


def rank_and_world_size(process_group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Return (rank, world size) in the group (None: the default one); (0, 1) without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(process_group), dist.get_world_size(process_group)


def rank_batches(
    documents: DocumentSet, *, micro_batch_tokens: int, process_group: dist.ProcessGroup | None
) -> Iterator[tuple[Batch, bool]]:
    """Yield this rank's (micro-batch, whether it counts); equally many on every rank.

    Padding needs no id of its own here: attention is causal and padded positions are no targets.
    """
    batches = make_micro_batches(
        documents, np.arange(len(documents)), micro_batch_tokens=micro_batch_tokens, layout="padded", pad_id=0
    )
    rank, world_size = rank_and_world_size(process_group)
    for start in range(0, len(batches), world_size):
        index = start + rank
        counts = index < len(batches)
        yield batches[index if counts else start], counts


class GroupSums:
    """Sums of ``num_columns`` quantities per group, in float64 on the CPU (not every accelerator has float64)."""

    def __init__(self, num_groups: int, num_columns: int) -> None:
        self.values = torch.zeros(num_groups, num_columns, dtype=torch.float64)

    def add(self, groups: Tensor, values: Tensor) -> None:
        """Add ``values`` [N, C] to the rows named by ``groups``, int64 [N]."""
        self.values.index_add_(0, groups.cpu(), values.double().cpu())

    def reduce(self, device: torch.device | str, process_group: dist.ProcessGroup | None) -> None:
        """Add up over the ranks, through ``device`` because NCCL moves accelerator tensors only."""
        if rank_and_world_size(process_group)[1] == 1:
            return
        shared = self.values.to(device)
        dist.all_reduce(shared, group=process_group)
        self.values = shared.cpu()
