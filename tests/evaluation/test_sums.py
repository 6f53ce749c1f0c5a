"""Sharing out documents among ranks: any number of ranks gives one rank's report."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from worked_documents import label_as_nll, worked_report

from stillhouse.data.batch import Batch
from stillhouse.evaluation.sums import GroupSums


def test_sums_by_group_in_float64() -> None:
    sums = GroupSums(2, 1)
    # 2^24 + 1 needs more than float32: ten thousand ones on top of it are all counted.
    sums.add(torch.tensor([1]), torch.tensor([[2.0**24]]))
    for _ in range(10):
        sums.add(torch.ones(1000, dtype=torch.long), torch.ones(1000, 1))
    assert sums.values.tolist() == [[0.0], [2.0**24 + 10_000]]


def run_rank(rank: int, folder: str, world_size: int) -> None:
    """Evaluate as one of the ranks, and write down the report and how often the model was called."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    calls: list[int] = []

    def score(batch: Batch) -> Tensor:
        calls.append(len(batch.labels))
        return label_as_nll(batch)

    try:
        report = worked_report(micro_batch_tokens=4, score=score)
        Path(folder, f"{rank}.json").write_text(json.dumps({"report": asdict(report), "calls": len(calls)}))
    finally:
        dist.destroy_process_group()


def test_two_ranks_give_one_ranks_report(tmp_path: Path) -> None:
    expected = asdict(worked_report())
    other = mp.spawn(_second_rank, args=(str(tmp_path),), nprocs=1, join=False)
    run_rank(0, str(tmp_path), 2)
    other.join()
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [r["report"] for r in results] == [expected, expected]
    # Three documents of one batch each: both ranks run two, the last of rank 1 with weight zero.
    assert [r["calls"] for r in results] == [2, 2]


def _second_rank(_index: int, folder: str) -> None:
    run_rank(1, folder, 2)
