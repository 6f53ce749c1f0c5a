"""Damage is found and named; what is not needed goes, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from worlds import TableTeacher, identity, make_documents, settings

from stillhouse.errors import DataError
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import capture
from stillhouse.targets.files import TEMPORARY_PREFIX
from stillhouse.targets.maintenance import as_json, info, prune, require_whole, verify

DOCUMENTS = make_documents(30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cache = TargetCache.open_or_create(tmp_path, identity())
    capture(TableTeacher(), DOCUMENTS, cache, settings(shard_bytes=1500))
    assert len(cache.shards) >= 3
    return tmp_path


def shard_file(path: Path) -> Path:
    return sorted((path / "shards").glob("*.safetensors"))[1]


def test_whole_cache(path: Path) -> None:
    report = verify(path)
    assert report.damaged == ()
    assert report.documents == 30
    assert report.targets == int(DOCUMENTS.num_targets.sum())
    require_whole(TargetCache.open(path))
    described = info(path)
    assert described["documents"] == 30
    assert described["codec"]["type"] == "topk_ghost"
    assert described["bytes"] == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    json.dumps(described)
    json.dumps(as_json(report))


@pytest.mark.parametrize("at", [20, 0.3, 0.6, -1], ids=["header", "index", "records", "last byte"])
def test_flipped_byte(path: Path, at: float) -> None:
    file = shard_file(path)
    content = bytearray(file.read_bytes())
    content[at if isinstance(at, int) else int(at * len(content))] ^= 1
    file.write_bytes(content)
    report = verify(path)
    assert len(report.damaged) == 1
    assert file.name in report.damaged[0]
    with pytest.raises(DataError, match=file.name):
        require_whole(TargetCache.open(path))


def test_every_single_bit_of_a_small_shard_matters(tmp_path: Path) -> None:
    cache = TargetCache.open_or_create(tmp_path, identity())
    capture(TableTeacher(), DOCUMENTS.select([0]), cache, settings())
    (file,) = (tmp_path / "shards").glob("*.safetensors")
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert len(verify(tmp_path).damaged) == 1, at
    file.write_bytes(whole)
    assert not verify(tmp_path).damaged


@pytest.mark.parametrize("deep", [True, False])
def test_truncated_and_missing_shards_are_named_without_reading_them(path: Path, deep: bool) -> None:
    file = shard_file(path)
    file.write_bytes(file.read_bytes()[:-10])
    (message,) = verify(path, deep=deep).damaged
    assert file.name in message
    assert "cut off" in message
    with pytest.raises(DataError, match="cut off"):
        TargetCache.open(path)
    file.unlink()
    (message,) = verify(path, deep=deep).damaged
    assert "is missing" in message


def test_damaged_entries_are_named(path: Path) -> None:
    entry = shard_file(path).with_suffix(".json")
    content = json.loads(entry.read_text())
    for bad, message in (
        ("{", "cannot be read"),
        (json.dumps({**content, "extra": 1}), "is no shard entry"),
        (json.dumps({**content, "name": "x"}), "describes the shard 'x'"),
        (json.dumps({**content, "documents": 1}), "does not have 1 documents"),
    ):
        entry.write_text(bad)
        (found,) = verify(path).damaged
        assert message in found
        with pytest.raises(DataError, match=message):
            TargetCache.open(path)


def test_file_of_the_right_size_that_is_no_shard(path: Path) -> None:
    file = shard_file(path)
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(DataError, match="is no shard of targets"):
        TargetCache.open(path)


def test_prune_removes_damage_and_capture_fills_the_gap(path: Path) -> None:
    expected = TargetCache.open(path).read(DOCUMENTS.uids)
    file = shard_file(path)
    file.write_bytes(file.read_bytes()[:-10])
    pruned = prune(path)
    assert (pruned.damaged_shards, pruned.documents, pruned.stray_files) == (1, 0, 0)
    assert pruned.bytes > 0
    cache = TargetCache.open(path)
    assert 0 < cache.num_documents < 30
    capture(TableTeacher(), DOCUMENTS, cache, settings())
    assert torch.equal(cache.read(DOCUMENTS.uids).weight, expected.weight)


def test_prune_keeps_exactly_the_given_documents(path: Path) -> None:
    kept = DOCUMENTS.select([3, 4, 20])
    expected = TargetCache.open(path).read(kept.uids)
    pruned = prune(path, kept)
    assert pruned.documents == 27
    cache = TargetCache.open(path)
    assert cache.num_documents == 3
    assert torch.equal(cache.read(kept.uids).weight, expected.weight)
    assert not verify(path).damaged
    assert prune(path, kept).documents == 0


def test_prune_drops_duplicates(path: Path) -> None:
    second = TargetCache.open_or_create(path / "second", identity())
    capture(TableTeacher(), DOCUMENTS.select(range(10)), second, settings())
    for file in (second.path / "shards").iterdir():
        file.rename(path / "shards" / file.name)
    expected = TargetCache.open(path).read(DOCUMENTS.uids)
    assert prune(path).documents == 10
    cache = TargetCache.open(path)
    assert sum(shard.entry.documents for shard in cache.shards) == 30
    assert torch.equal(cache.read(DOCUMENTS.uids).weight, expected.weight)


def test_prune_leaves_young_strays_alone(path: Path) -> None:
    young, old = path / "shards" / f"{TEMPORARY_PREFIX}a", path / "shards" / ("0" * 32 + ".safetensors")
    for file in (young, old):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    assert prune(path).stray_files == 1
    assert young.exists()
    assert not old.exists()


def test_no_cache(tmp_path: Path) -> None:
    for command in (verify, prune, info):
        with pytest.raises(DataError, match="no cache is here"):
            command(tmp_path)
