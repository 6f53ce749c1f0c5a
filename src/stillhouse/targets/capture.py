"""Score documents with a teacher once, and keep what the codec keeps.

The teacher's projection is gone through chunk by chunk, so dense logits exist for a few hundred
tokens at a time. Random draws come from a generator of each document's own, so they do not depend
on the order, the batches or the process in which documents are met.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.batching import collate_padded, group_by_length
from stillhouse.data.document import UID_BYTES, DocumentSet, Int64Array
from stillhouse.errors import OutputError, StillhouseError
from stillhouse.randomness import numpy_generator
from stillhouse.targets.blocks import ChunkLogits, part
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.codec import Codec, Selection
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.targets.shards import DocumentRecord
from stillhouse.teachers.protocol import Projection, Teacher

INDEX_BYTES = UID_BYTES + 4 + 8
"""Of a shard's index, per document: id, number of targets, offset."""

DISK_RESERVE = 1.1
"""Free space asked for, as a multiple of the estimate."""


@dataclass(frozen=True)
class CaptureSettings:
    """How to go about it; none of it changes what is captured."""

    micro_batch_tokens: int
    """Padded tokens that the teacher sees at a time."""
    pad_id: int = 0
    chunk: int = 512
    """Target tokens whose logits exist at one time."""
    compiled: bool = True
    """Compile the pass over the logits (needs a C++ compiler on CPU)."""
    device: str = "cpu"
    """Where the teacher is."""
    shard_bytes: int = 64 << 20
    shard_seconds: float = 60.0
    """A shard is written when it has so many bytes or is so old: what a kill can cost at most."""
    part: tuple[int, int] = (0, 1)
    """(i, n): capture the i-th of n disjoint parts of the documents, one for each of n processes."""


@dataclass(frozen=True)
class CaptureProgress:
    """How far a capture is. ``bytes`` are those of finished shards; what was in the cache before is not counted."""

    documents: int
    total_documents: int
    tokens: int
    total_tokens: int
    targets: int
    bytes: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None before the first batch is done."""
        rate = self.tokens_per_second
        return (self.total_tokens - self.tokens) / rate if rate > 0 else None


def estimate_bytes(codec: Codec, vocab_size: int, *, targets: int, documents: int) -> int:
    """Return the bytes on disk that so many targets of so many documents will take.

    Exact for top-k but for rounding a document up to a byte; for sampled targets what a chat model's
    distributions take (``capture`` goes on with the measured rate after its first shard).
    """
    return int(targets * codec.typical_bits(vocab_size) / 8 + documents * (INDEX_BYTES + 1))


def pending(cache: TargetCache, documents: DocumentSet, part: tuple[int, int] = (0, 1)) -> Int64Array:
    """Return the indices of the documents that a capture of this part would score."""
    missing = cache.missing(documents)
    index, count = part
    assert 0 <= index < count
    shares = documents.uids[missing, :8].copy().view("<u8").reshape(-1) % np.uint64(count)
    mine: Int64Array = missing[shares == index]
    return mine


def capture(
    teacher: Teacher,
    documents: DocumentSet,
    cache: TargetCache,
    settings: CaptureSettings,
    *,
    progress: Callable[[CaptureProgress], None] | None = None,
) -> CaptureProgress:
    """Add to the cache what it lacks of ``documents``; codec, temperature and seed are the cache's.

    ``progress`` is told after every batch. A capture that is killed loses the shard it was filling and
    is continued by calling this again; Ctrl-C writes that shard first. Raises OutputError when the
    disk cannot hold the targets, before the teacher is asked, and later if the estimate was too low.
    """
    indices = pending(cache, documents, settings.part)
    filler = ShardFiller(documents, indices, cache, settings.shard_bytes, settings.shard_seconds)
    for group in group_by_length(documents.lengths[indices], settings.micro_batch_tokens):
        chosen = indices[group]
        wanted = filler.wanted(chosen)
        with filler.keeping_what_is_done():
            records: list[DocumentRecord] = []
            if len(wanted):
                batch = collate_padded(documents, wanted.tolist(), settings.pad_id)
                records = list(encode(teacher, batch, documents, cache.identity, settings))
        filler.add(chosen, records)
        if progress is not None:
            progress(filler.progress())
    filler.flush()
    return filler.progress()


class ShardFiller:
    """Collects records into shards, counts, and watches the disk; whoever scores the documents hands them in."""

    def __init__(
        self, documents: DocumentSet, indices: Int64Array, cache: TargetCache, shard_bytes: int, shard_seconds: float
    ) -> None:
        """``indices``: the documents to come. Raises OutputError when the disk cannot hold their targets."""
        self._documents, self._cache = documents, cache
        self._shard_bytes, self._shard_seconds = shard_bytes, shard_seconds
        self._total_documents, self._total_tokens = len(indices), int(documents.lengths[indices].sum())
        self._total_targets = int(documents.num_targets[indices].sum())
        self._pending: list[DocumentRecord] = []
        self._pending_bytes = 0
        self._done_documents = self._done_tokens = self._done_targets = self._written = self._written_targets = 0
        self._started = self._shard_started = time.monotonic()
        self._refuse_small_disk()

    def progress(self) -> CaptureProgress:
        """How far the capture is."""
        return CaptureProgress(
            self._done_documents,
            self._total_documents,
            self._done_tokens,
            self._total_tokens,
            self._done_targets,
            self._written,
            time.monotonic() - self._started,
        )

    def wanted(self, indices: Int64Array) -> Int64Array:
        """Those of the documents that no other capture has added meanwhile."""
        found: Int64Array = indices[self._cache.targets_of(self._documents.uids[indices]) < 0]
        return found

    @contextmanager
    def keeping_what_is_done(self) -> Iterator[None]:
        """Write the shard in flight when scoring ends early: by Ctrl-C, or by an error that a person can mend."""
        try:
            yield
        except (KeyboardInterrupt, StillhouseError):
            self.flush()
            raise

    def add(self, indices: Int64Array, records: list[DocumentRecord]) -> None:
        """Take the records of the documents at ``indices`` (none for those that another capture added)."""
        self._pending += records
        self._pending_bytes += sum(len(record.data) + INDEX_BYTES for record in records)
        self._done_documents += len(indices)
        self._done_tokens += int(self._documents.lengths[indices].sum())
        self._done_targets += int(self._documents.num_targets[indices].sum())
        age = time.monotonic() - self._shard_started
        if self._pending_bytes >= self._shard_bytes or age >= self._shard_seconds:
            self.flush()
            self._refuse_small_disk()

    def flush(self) -> None:
        """Write the shard in flight, if it holds anything."""
        if self._pending:
            entry = self._cache.add(self._pending)
            self._written += entry.bytes
            self._written_targets += entry.targets
        self._pending, self._pending_bytes, self._shard_started = [], 0, time.monotonic()

    def _refuse_small_disk(self) -> None:
        """Raise OutputError when what is left will not fit; by the measured rate once there is one."""
        left = self._total_targets - self._done_targets
        if self._written_targets:
            needed = int(left * self._written / self._written_targets)
        else:
            documents = self._total_documents - self._done_documents
            identity = self._cache.identity
            needed = estimate_bytes(identity.codec, identity.vocab_size, targets=left, documents=documents)
        require_space(self._cache.path, needed)


def require_space(path: Path, needed: int) -> None:
    """Raise OutputError when the disk under ``path`` has too little room for ``needed`` bytes more."""
    free = shutil.disk_usage(path).free
    if needed * DISK_RESERVE > free:
        raise OutputError(
            f"teacher.cache={path}: the targets need about {needed / 2**30:.2f} GiB and the disk has "
            f"{free / 2**30:.2f} GiB free; free some space, choose another disk, or keep less "
            "(a smaller teacher.cache.codec k or draws, statistics: false)"
        )


def encode(
    teacher: Teacher, batch: Batch, documents: DocumentSet, identity: CacheIdentity, settings: CaptureSettings
) -> Iterator[DocumentRecord]:
    """Ask the teacher about one padded batch and yield a record for each of its documents, in row order."""
    rows = batch.document_ids[torch.cat([batch.document_ids.new_ones(1), batch.document_ids.diff()]) != 0]
    indices = rows.numpy()
    counts = documents.num_targets[indices]
    uids = [documents.uids[i].tobytes() for i in indices]
    uniforms = _uniforms(identity.codec, identity.seed, uids, counts)
    on_device = batch.to(settings.device)
    with torch.no_grad():
        projection = teacher.targets(on_device).projection
        chosen = _select(projection, on_device.labels, uniforms, identity, settings)
    buffer, offsets = identity.codec.pack(chosen, counts, identity.vocab_size)
    for uid, count, start, stop in zip(uids, counts.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield DocumentRecord(uid, count, buffer[start:stop].tobytes())


def _select(
    projection: Projection, labels: Tensor, uniforms: Tensor | None, identity: CacheIdentity, settings: CaptureSettings
) -> Selection:
    """Go through the N targets chunk by chunk."""
    chunk = settings.chunk
    parts = []
    for start in range(0, len(labels), chunk):
        stop = min(start + chunk, len(labels))
        logits = ChunkLogits.of(part(projection, start, stop), identity.vocab_size)
        drawn = None if uniforms is None else uniforms[start:stop].to(labels.device)
        chosen = identity.codec.select(
            logits, labels[start:stop], identity.temperature, drawn, compiled=settings.compiled
        )
        parts.append(chosen)
    return Selection.joined(parts)


def _uniforms(codec: Codec, seed: int, uids: list[bytes], counts: Int64Array) -> Tensor | None:
    """Return float64 [N, uniforms_per_target], each document's from its own generator."""
    if codec.uniforms_per_target == 0:
        return None
    width = codec.uniforms_per_target
    drawn = [
        numpy_generator(seed, "teacher-targets", int.from_bytes(uid, "little")).random((int(count), width))
        for uid, count in zip(uids, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(drawn))
