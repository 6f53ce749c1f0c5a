"""Looking after a cache: what is in it, is it whole, and what of it is no longer needed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.data.document import DocumentSet
from stillhouse.errors import DataError
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.files import TEMPORARY_PREFIX
from stillhouse.targets.manifest import read_manifest
from stillhouse.targets.shards import FOLDER, SUFFIX, DocumentRecord, Shard, ShardEntry, Uids, uid_keys, write_shard

STRAY_SECONDS = 3600.0
"""Files without an entry may belong to a capture that is writing them now; older ones do not."""


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found; ``damaged`` has one message a file, which names it."""

    shards: int
    documents: int
    targets: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` removed."""

    damaged_shards: int
    stray_files: int
    documents: int
    bytes: int


def _scan(path: Path, *, deep: bool) -> tuple[list[Shard], list[tuple[Path, str]]]:
    """Return the whole shards, and (entry file, message) of the damaged ones."""
    whole, damaged = [], []
    for entry_file in sorted((path / FOLDER).glob("*.json")):
        try:
            shard = Shard(path, ShardEntry.read(entry_file))
            if deep:
                shard.verify()
        except DataError as error:
            damaged.append((entry_file, str(error)))
        else:
            whole.append(shard)
    return whole, damaged


def verify(path: Path, *, deep: bool = True) -> Verification:
    """Check every shard; ``deep`` reads all bytes and compares checksums, else only sizes and layout.

    Raises DataError when there is no cache or its manifest cannot be read; damaged shards are listed.
    """
    read_manifest(path)
    whole, damaged = _scan(path, deep=deep)
    return Verification(
        shards=len(whole) + len(damaged),
        documents=sum(s.entry.documents for s in whole),
        targets=sum(s.entry.targets for s in whole),
        damaged=tuple(message for _, message in damaged),
    )


def require_whole(cache: TargetCache) -> None:
    """Raise DataError naming the first shard whose bytes are not those that were written."""
    for shard in cache.shards:
        shard.verify()


def info(path: Path) -> dict[str, Any]:
    """Return identity, counts and sizes as JSON. Raises DataError when a file of the cache is damaged."""
    cache = TargetCache.open(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return {
        **cache.identity.describe(),
        "shards": len(cache.shards),
        "documents": cache.num_documents,
        "targets": cache.num_targets,
        "bytes": size,
        "bytes_per_target": size / cache.num_targets if cache.num_targets else None,
        "stray_files": len(_strays(path, 0.0)),
    }


def _strays(path: Path, least_age_seconds: float) -> list[Path]:
    """Files that no entry names, older than so many seconds: what killed captures leave behind."""
    folder = path / FOLDER
    entries = {entry.stem for entry in folder.glob("*.json")}
    unnamed = [file for file in folder.glob(f"*{SUFFIX}") if file.stem not in entries]
    unfinished = [*folder.glob(f"{TEMPORARY_PREFIX}*"), *path.glob(f"{TEMPORARY_PREFIX}*")]
    newest = time.time() - least_age_seconds
    return [file for file in [*unnamed, *unfinished] if file.stat().st_mtime <= newest]


def prune(path: Path, documents: DocumentSet | None = None, *, stray_seconds: float = STRAY_SECONDS) -> Pruned:
    """Remove damaged shards, what killed captures left, and documents that are not in ``documents``.

    None keeps every document. A document that two captures both wrote is kept once. Shards that lose
    some of their documents are written anew before the old file goes, so a kill loses nothing. Do not
    prune while a capture or a run is using the cache.
    """
    read_manifest(path)
    before = _size(path)
    whole, damaged = _scan(path, deep=True)
    for entry_file, _ in damaged:
        _remove(path, entry_file.stem)
    strays = _strays(path, stray_seconds)
    for file in strays:
        file.unlink()
    wanted = None if documents is None else np.unique(uid_keys(documents.uids))
    seen: set[bytes] = set()
    removed = sum(_prune_shard(path, shard, wanted, seen) for shard in whole)
    return Pruned(len(damaged), len(strays), removed, before - _size(path))


def _prune_shard(path: Path, shard: Shard, wanted: Uids | None, seen: set[bytes]) -> int:
    """Keep the wanted documents of one shard that are not ``seen`` yet; return how many went."""
    keys, targets = shard.index()
    kept = []
    useful = np.ones(len(keys), np.bool_) if wanted is None else np.isin(keys, wanted)
    for place in np.flatnonzero(useful).tolist():
        key = bytes(keys[place])
        if key not in seen:
            seen.add(key)
            kept.append(place)
    lost = len(keys) - len(kept)
    if lost == 0:
        return 0
    if kept:
        uids = keys.view(np.uint8).reshape(len(keys), -1)
        records = zip(kept, shard.records(kept), strict=True)
        write_shard(path, [DocumentRecord(uids[i].tobytes(), int(targets[i]), data.tobytes()) for i, data in records])
    _remove(path, shard.entry.name)
    return lost


def _remove(path: Path, name: str) -> None:
    """Remove a shard: its entry first, so that a kill leaves a stray and no entry without a shard."""
    (path / FOLDER / f"{name}.json").unlink()
    (path / FOLDER / f"{name}{SUFFIX}").unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def as_json(report: Verification | Pruned) -> dict[str, Any]:
    """Return a report as JSON."""
    return asdict(report)
