"""Calibration over two processes is that of one, also where a rank repeats a batch."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stillhouse.data.batch import Batch
from stillhouse.data.document import Document, DocumentSet
from stillhouse.evaluation.metrics.calibration import TokenCalibration
from stillhouse.evaluation.nll import measure_nll
from stillhouse.teachers.protocol import Projection

VOCABULARY = 7


def documents() -> DocumentSet:
    """Three documents of 4, 3 and 3 tokens, so that two ranks take two, and one batch with weight zero."""
    ids = ([1, 2, 3, 4], [2, 3, 5], [6, 1, 2])
    built = [Document(np.array(i, np.int32), np.arange(len(i)) > 0, 0, bytes([n] * 16)) for n, i in enumerate(ids)]
    return DocumentSet.build(built, range(3), ("d",), "t")


def project(batch: Batch) -> Projection:
    """Logits that depend on the target and are right for some: ids 2 and 3 are found, others taken for 2."""
    hidden = torch.nn.functional.one_hot(batch.labels, VOCABULARY).float()
    weight = torch.eye(VOCABULARY) * 2
    weight[2] += 1.5 * (torch.arange(VOCABULARY) % 4 != 3)
    return Projection(hidden, weight)


def measured(process_group: dist.ProcessGroup | None = None) -> dict[str, object]:
    docs = documents()
    tally = TokenCalibration(project, num_documents=3, end_of_turn_ids=frozenset({4}), vocab_size=None, head_chunk=2)
    measure_nll(tally, docs, end_of_turn_ids=frozenset({4}), byte_counts=None, micro_batch_tokens=4, device="cpu")
    return tally.score("cpu", process_group).to_json()


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        Path(folder, f"{rank}.json").write_text(json.dumps(measured()))
    finally:
        dist.destroy_process_group()


def _second_rank(_index: int, folder: str) -> None:
    run_rank(1, folder)


def test_two_ranks_give_one_ranks_score(tmp_path: Path) -> None:
    alone = measured()
    assert alone["n"] == 3
    assert 0 < float(str(alone["score"])) < 1
    other = mp.spawn(_second_rank, args=(str(tmp_path),), nprocs=1, join=False)
    run_rank(0, str(tmp_path))
    other.join()
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["n"] == 3
        assert abs(found["score"] - float(str(alone["score"]))) < 1e-6
