"""Captures that are killed, run side by side, or meet a full disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import worlds
from transformers import LlamaForCausalLM
from worlds import TableTeacher, identity, make_documents, settings

from stillhouse.errors import OutputError
from stillhouse.targets import files
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import CaptureProgress, capture, estimate_bytes, pending
from stillhouse.targets.codec import Sampled, TopKGhost
from stillhouse.targets.maintenance import prune, verify
from stillhouse.teachers.live import LiveTeacher

DOCUMENTS = make_documents(40)


def test_only_what_is_missing_is_scored(tmp_path: Path) -> None:
    cache, teacher = TargetCache.open_or_create(tmp_path, identity()), TableTeacher()
    first = capture(teacher, DOCUMENTS.select(range(25)), cache, settings())
    assert (first.documents, first.total_documents) == (25, 25)
    seen: list[CaptureProgress] = []
    second = capture(teacher, DOCUMENTS, cache, settings(), progress=seen.append)
    assert second.total_documents == 15
    assert [p.documents for p in seen] == sorted(p.documents for p in seen)
    assert seen[-1].documents == 15
    assert seen[-1].tokens == seen[-1].total_tokens == int(DOCUMENTS.lengths[25:].sum())
    assert seen[0].seconds_left is not None
    teacher.batches = 0
    assert capture(teacher, DOCUMENTS, cache, settings()).total_documents == 0
    assert teacher.batches == 0


@pytest.mark.parametrize("codec", [TopKGhost(k=5), Sampled(draws=9), Sampled(draws=9, method="independent")])
def test_result_does_not_depend_on_batches_order_or_chunks(tmp_path: Path, codec: TopKGhost | Sampled) -> None:
    a = TargetCache.open_or_create(tmp_path / "a", identity(codec))
    capture(TableTeacher(), DOCUMENTS, a, settings())
    b = TargetCache.open_or_create(tmp_path / "b", identity(codec))
    other = DOCUMENTS.select(np.random.default_rng(0).permutation(40))
    capture(TableTeacher(), other, b, settings(micro_batch_tokens=23, chunk=3, shard_seconds=0.0))
    assert len(b.shards) > len(a.shards)
    ours, theirs = a.read(DOCUMENTS.uids), b.read(DOCUMENTS.uids)
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.teacher_nll is not None
    assert theirs.teacher_nll is not None
    assert torch.equal(ours.teacher_nll, theirs.teacher_nll)


def test_another_seed_draws_otherwise(tmp_path: Path) -> None:
    caches = [TargetCache.open_or_create(tmp_path / str(s), identity(Sampled(draws=9), seed=s)) for s in (1, 2)]
    for cache in caches:
        capture(TableTeacher(), DOCUMENTS, cache, settings())
    assert not torch.equal(*(cache.read(DOCUMENTS.uids).weight.sum(0)[:9] for cache in caches))


def test_parts_are_disjoint_and_whole(tmp_path: Path) -> None:
    cache = TargetCache.open_or_create(tmp_path, identity())
    parts = [pending(cache, DOCUMENTS, (i, 3)) for i in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    assert all(len(part) for part in parts)
    for i in range(3):
        capture(TableTeacher(), DOCUMENTS, cache, settings(part=(i, 3)))
    cache.require(DOCUMENTS)


def test_live_model(tmp_path: Path, tiny_model: LlamaForCausalLM) -> None:
    """A real model: top-k weights are its probabilities, whatever padding the batches have."""
    vocab = worlds.VOCAB
    cache = TargetCache.open_or_create(tmp_path, identity(TopKGhost(k=6, value_bits=16)))
    teacher = LiveTeacher(tiny_model, vocabulary_map=None, vocab_size=vocab)
    capture(teacher, DOCUMENTS, cache, settings(micro_batch_tokens=100))
    document = DOCUMENTS[11]
    with torch.no_grad():
        logits = tiny_model(torch.from_numpy(document.input_ids).long()[None]).logits[0, :-1, :vocab]
    p = logits[torch.from_numpy(document.loss_mask[1:])].softmax(-1)
    found = cache.read([document.uid])
    torch.testing.assert_close(found.weight, p.gather(1, found.ids), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.weight.sum(1), p.topk(6).values.sum(1), rtol=1e-3, atol=1e-6)


# --- disk -------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def test_estimate_is_what_top_k_takes(tmp_path: Path) -> None:
    cache = TargetCache.open_or_create(tmp_path, identity())
    done = capture(TableTeacher(), DOCUMENTS, cache, settings())
    estimate = estimate_bytes(
        cache.identity.codec, worlds.VOCAB, targets=int(DOCUMENTS.num_targets.sum()), documents=len(DOCUMENTS)
    )
    assert 0 <= done.bytes - estimate + len(DOCUMENTS) <= 500  # rounding up, and the file's header


def test_small_disk_is_refused_before_the_teacher_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, teacher = TargetCache.open_or_create(tmp_path, identity()), TableTeacher()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 5000))
    with pytest.raises(OutputError, match=r"the targets need about 0\.00 GiB and the disk has 0\.00 GiB free"):
        capture(teacher, DOCUMENTS, cache, settings())
    assert teacher.batches == 0


def test_estimate_is_corrected_by_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat distributions make sampled records larger than typical: noticed after a shard, which stays."""
    codec = Sampled(draws=50, method="independent", statistics=False)
    cache, teacher = TargetCache.open_or_create(tmp_path, identity(codec)), TableTeacher()
    teacher.head = teacher.head * 0
    targets = int(DOCUMENTS.num_targets.sum())
    first = estimate_bytes(codec, worlds.VOCAB, targets=targets, documents=40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, int(first * 1.15)))
    with pytest.raises(OutputError, match="the disk has"):
        capture(teacher, DOCUMENTS, cache, settings(shard_seconds=0.0))
    assert len(cache.shards) >= 1
    assert not verify(tmp_path).damaged


def test_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    cache, teacher = TargetCache.open_or_create(tmp_path, identity()), TableTeacher()
    answer = teacher.targets

    def third_time_interrupts(batch: object, layers: object = ()) -> object:
        if teacher.batches == 2:
            raise KeyboardInterrupt
        return answer(batch)  # type: ignore[arg-type]

    teacher.targets = third_time_interrupts  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        capture(teacher, DOCUMENTS, cache, settings())
    assert 0 < TargetCache.open(tmp_path).num_documents < 40


# --- kills ------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: from then on no file operation has any effect."""


class DyingDisk:
    """Lets so many file operations through and then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
        self.left, self.counted = allowed, 0
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "hardlink_to"), (Path, "chmod"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            self.counted += 1
            return function(*arguments, **keywords)

        return call


def test_a_kill_at_any_file_operation_loses_one_shard_at_most(tmp_path: Path) -> None:
    documents = DOCUMENTS.select(range(12))

    def attempt(folder: Path, allowed: int) -> int:
        with pytest.MonkeyPatch.context() as patch:
            disk = DyingDisk(patch, allowed)
            cache = TargetCache.open_or_create(folder, identity())
            capture(TableTeacher(), documents, cache, settings(shard_seconds=0.0))
        return disk.counted

    operations = attempt(tmp_path / "whole", 10**6)
    shards = len(TargetCache.open(tmp_path / "whole").shards)
    assert operations >= 8 * shards
    expected = TargetCache.open(tmp_path / "whole").read(documents.uids)
    before = 0
    for allowed in range(operations):
        folder = tmp_path / str(allowed)
        with pytest.raises(Killed):
            attempt(folder, allowed)
        if (folder / "manifest.json").exists():
            assert not verify(folder).damaged
            kept = len(TargetCache.open(folder).shards)
            assert before <= kept <= before + 1
            before = kept
        attempt(folder, 10**6)
        resumed = TargetCache.open(folder).read(documents.uids)
        assert torch.equal(resumed.ids, expected.ids)
        assert torch.equal(resumed.weight, expected.weight)
        prune(folder, stray_seconds=0.0)
        assert not list(folder.rglob(f"{files.TEMPORARY_PREFIX}*"))
    assert before == shards


def start(folder: Path, count: int, delay: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, worlds.__file__, str(folder), str(count), str(delay)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


def test_two_captures_at_once_and_one_is_killed(tmp_path: Path) -> None:
    documents = make_documents(150)
    processes = [start(tmp_path, 150, 0.03) for _ in range(2)]
    for process in processes:
        wait_for_line(process, "ready")
    while len(list((tmp_path / "shards").glob("*.json"))) < 2:
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    assert processes[0].wait() == -signal.SIGKILL
    wait_for_line(processes[1], "done")
    assert processes[1].wait() == 0
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
    report = verify(tmp_path)
    assert not report.damaged
    cache = TargetCache.open(tmp_path, identity())
    cache.require(documents)
    alone = TargetCache.open_or_create(tmp_path / "alone", identity())
    capture(TableTeacher(), documents, alone, settings())
    assert torch.equal(cache.read(documents.uids).weight, alone.read(documents.uids).weight)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Two captures of one cache, both killed at a random moment, eight times over; then one to the end."""
    chance = random.Random(5)
    documents, kept = make_documents(400), 0
    for _ in range(8):
        processes = [start(tmp_path, 400, 0.005) for _ in range(2)]
        for process in processes:
            wait_for_line(process, "ready")
        for process in processes:
            time.sleep(chance.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        assert not verify(tmp_path).damaged
        now = TargetCache.open(tmp_path).num_documents
        assert now >= kept
        kept = now
    assert kept > 0
    cache = TargetCache.open(tmp_path, identity())
    capture(TableTeacher(), documents, cache, settings())
    cache.require(documents)
    assert not verify(tmp_path).damaged
