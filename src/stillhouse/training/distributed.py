"""Processes: one is the degenerate case of many.

Under ``torchrun`` the process group is started from its environment variables (NCCL on GPUs,
gloo on CPU); without it every function here works on the one process there is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process's place among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        return self.size > 1

    def sum_(self, values: Tensor) -> Tensor:
        """Add ``values`` over all processes, in place."""
        if self.is_distributed:
            dist.all_reduce(values)
        return values

    def sum_list(self, values: Sequence[float]) -> list[float]:
        """Add a list of numbers over all processes, in float64."""
        if not self.is_distributed:
            return list(values)
        return self.sum_(torch.tensor(list(values), dtype=torch.float64, device=self.device)).tolist()

    def any(self, flag: bool) -> bool:
        """True when the flag is set on any process."""
        return self.sum_list([float(flag)])[0] > 0

    def barrier(self) -> None:
        if self.is_distributed:
            dist.barrier()


@contextmanager
def world() -> Iterator[World]:
    """Start the process group that torchrun describes, and end it on the way out."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")
