"""A cache is opened only for what it was captured from, and gives back what it holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import VOCAB, TableTeacher, identity, make_documents, settings

from stillhouse.data.document import DocumentSet
from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import capture
from stillhouse.targets.codec import TopK, TopKGhost
from stillhouse.targets.index import DocumentIndex
from stillhouse.targets.manifest import write_manifest
from stillhouse.targets.shards import DocumentRecord, write_shard

DOCUMENTS = make_documents(30)


@pytest.fixture
def filled(tmp_path: Path) -> TargetCache:
    cache = TargetCache.open_or_create(tmp_path / "cache", identity())
    capture(TableTeacher(), DOCUMENTS, cache, settings(shard_bytes=600))
    return cache


def test_reads_any_order_with_repeats(filled: TargetCache) -> None:
    assert len(filled.shards) > 2
    order = [7, 0, 29, 7, 7, 12]
    found = TargetCache.open(filled.path).read(DOCUMENTS.uids[order])
    truth = torch.cat([TableTeacher().probabilities(DOCUMENTS, i) for i in order])
    kept, ids = truth.topk(5, dim=1)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.weight.double(), kept, rtol=2e-2, atol=1e-4)
    assert found.vocab_size == VOCAB
    one_by_one = filled.read([DOCUMENTS[i].uid for i in order])
    assert torch.equal(one_by_one.weight, found.weight)


def test_nothing_to_read(filled: TargetCache) -> None:
    assert len(filled.read(DOCUMENTS.uids[:0])) == 0


def test_missing_lists_each_absent_document_once(filled: TargetCache) -> None:
    more = make_documents(40, seed=9)
    both = DocumentSet.build([*DOCUMENTS, *more, *more], range(110), ["all"], DOCUMENTS.tokenizer_hash)
    assert filled.missing(both).tolist() == list(range(30, 70))
    assert not len(filled.missing(DOCUMENTS))
    filled.require(DOCUMENTS)
    with pytest.raises(DataError, match="40 of 110 documents are not in the cache"):
        filled.require(both)
    with pytest.raises(DataError, match="was the chat template"):
        filled.require(more)
    with pytest.raises(DataError, match=f"document {more[0].uid.hex()} is not in the cache"):
        filled.read(more.uids)


def test_empty_cache(tmp_path: Path) -> None:
    cache = TargetCache.open_or_create(tmp_path, identity())
    assert cache.num_documents == cache.num_targets == 0
    assert cache.missing(DOCUMENTS).tolist() == list(range(30))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"teacher": "other"},
            ModelError,
            r"teacher\.path: .* another teacher \(smol\): its fingerprint is fingerprint",
        ),
        ({"tokenizer": "other"}, ModelError, r"captured with tokenizer tokenizer-of-the-tests \(97 ids\)"),
        ({"vocab_size": 96}, ModelError, r"is tokenizer-of-the-tests \(96 ids\)"),
        ({"codec": TopKGhost(k=6, value_bits=12)}, RecipeError, r"teacher\.cache\.codec\.k=6: .* captured with 5"),
        ({"codec": TopK(k=5, value_bits=12)}, RecipeError, r"teacher\.cache\.codec\.type=topk: .* with topk_ghost"),
        ({"temperature": 2.0}, RecipeError, r"teacher\.cache\.temperature=2\.0: .* captured with 1\.0"),
    ],
)
def test_another_identity_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    write_manifest(tmp_path, identity(teacher_name="smol"))
    with pytest.raises(error, match=message):
        TargetCache.open(tmp_path, identity(**change))
    with pytest.raises(error, match=message):
        TargetCache.open_or_create(tmp_path, identity(**change))


def test_seed_and_names_may_differ(tmp_path: Path) -> None:
    write_manifest(tmp_path, identity(teacher_name="smol", seed=3))
    cache = TargetCache.open_or_create(tmp_path, identity(teacher_name="other", seed=4, chat_template="x"))
    assert cache.identity == identity(teacher_name="smol", seed=3)


def test_the_caches_precision_holds_unless_another_one_is_asked_for(tmp_path: Path) -> None:
    write_manifest(tmp_path, identity(teacher_dtype="bfloat16"))
    assert TargetCache.open(tmp_path, identity()).identity.teacher_dtype == "bfloat16"
    with pytest.raises(RecipeError, match=r"teacher\.dtype=float32: the cache was captured with bfloat16"):
        TargetCache.open(tmp_path, identity(teacher_dtype="float32"))


def test_another_template_is_named_where_documents_are_missing(tmp_path: Path) -> None:
    write_manifest(tmp_path, identity(chat_template="aa"))
    with pytest.raises(DataError, match=r"template is another one .*digest bb, then aa"):
        TargetCache.open(tmp_path, identity(chat_template="bb")).require(DOCUMENTS)


def test_second_manifest_does_not_replace_the_first(tmp_path: Path) -> None:
    assert write_manifest(tmp_path, identity())
    before = (tmp_path / "manifest.json").read_bytes()
    assert not write_manifest(tmp_path, identity(teacher="other"))
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_no_cache_and_other_versions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cache is here"):
        TargetCache.open(tmp_path)
    write_manifest(tmp_path, identity())
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(DataError, match="version 99 is not"):
        TargetCache.open(tmp_path)
    path.write_text(json.dumps({**content, "format_version": 1}))
    with pytest.raises(DataError, match="delete the cache folder and capture again: `stillhouse capture`"):
        TargetCache.open(tmp_path)
    path.write_text(json.dumps({k: v for k, v in content.items() if k != "seed"}))
    with pytest.raises(DataError, match="has no field 'seed'"):
        TargetCache.open(tmp_path)
    path.write_text("[]")
    with pytest.raises(DataError, match="must hold a JSON object"):
        TargetCache.open(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        TargetCache.open(tmp_path)


def test_index_that_contradicts_the_data_is_refused(filled: TargetCache) -> None:
    one = replace(DOCUMENTS[0], uid=b"x" * 16)
    records = [DocumentRecord(one.uid, one.num_targets + 1, b"1234567")]
    write_shard(filled.path, records)
    filled.refresh()
    odd = DocumentSet.build([one], [0], ["all"], DOCUMENTS.tokenizer_hash)
    with pytest.raises(DataError, match="another number of targets"):
        filled.require(odd)


def test_document_of_two_shards_is_counted_once(filled: TargetCache) -> None:
    before = filled.num_documents, filled.num_targets
    other = TargetCache.open_or_create(filled.path.parent / "other", identity())
    capture(TableTeacher(), DOCUMENTS, other, settings())
    for file in (other.path / "shards").iterdir():
        file.rename(filled.path / "shards" / file.name)
    filled.refresh()
    assert (filled.num_documents, filled.num_targets) == before
    assert len(filled.read(DOCUMENTS.uids)) == int(DOCUMENTS.num_targets.sum())


def test_foreign_tokenizer_of_the_documents_is_refused(filled: TargetCache) -> None:
    foreign = replace(DOCUMENTS, tokenizer_hash="another")
    with pytest.raises(DataError, match="tokenized by another"):
        filled.require(foreign)


def test_uids_that_end_in_zero_bytes_are_told_apart(tmp_path: Path) -> None:
    """Keys are compared as padded strings; a trailing zero byte must not make two ids one."""
    cache = TargetCache.open_or_create(tmp_path, identity(TopK(k=1, value_bits=8, statistics=False)))
    uids = [b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", b"a" * 16]
    cache.add([DocumentRecord(uid, 1, bytes([i, 0])) for i, uid in enumerate(uids)])
    assert cache.num_documents == 3
    assert cache.targets_of(
        np.frombuffer(b"".join([*uids, b"a" * 13 + b"\0\0\0"]), np.uint8).reshape(4, 16)
    ).tolist() == [
        1,
        1,
        1,
        -1,
    ]
    assert cache.read(uids).top1.tolist() == [0, 1, 2]


def test_a_shard_more_is_merged_and_not_sorted_with_the_rest(
    filled: TargetCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = make_documents(25, seed=4)
    reader = TargetCache.open(filled.path)
    capture(TableTeacher(), more, filled, settings(shard_bytes=300))

    def refuse(shards: object) -> None:
        raise AssertionError("the whole index was sorted again")

    both = DocumentSet.build([*DOCUMENTS, *more], range(55), ["all"], DOCUMENTS.tokenizer_hash)
    fresh = TargetCache.open(filled.path)
    monkeypatch.setattr(DocumentIndex, "of", refuse)
    known = len(reader.shards)
    monkeypatch.setattr("stillhouse.targets.cache.MERGED_AT_ONCE", 1000)
    reader.refresh()
    assert len(reader.shards) > known + 2
    for cache in (reader, filled):
        assert np.array_equal(cache.document_ids(), fresh.document_ids())
        assert torch.equal(cache.read(both.uids).weight, fresh.read(both.uids).weight)
        assert cache.num_targets == fresh.num_targets
    entry = filled.add([DocumentRecord(bytes(range(16)), 1, b"")])
    assert entry.name in {shard.entry.name for shard in filled.shards}
    assert filled.targets_of(np.arange(16, dtype=np.uint8)[None]).tolist() == [1]


def test_a_document_of_two_shards_is_counted_once(filled: TargetCache) -> None:
    count, targets = filled.num_documents, filled.num_targets
    uid = DOCUMENTS[3].uid
    shard = next(s for s in filled.shards if uid in s.index()[0].tolist())
    place = shard.index()[0].tolist().index(uid)
    (record,) = shard.records([place])
    filled.add([DocumentRecord(uid, int(shard.index()[1][place]), record.tobytes())])
    for cache in (filled, TargetCache.open(filled.path)):
        assert (cache.num_documents, cache.num_targets) == (count, targets)


def test_a_shard_that_is_pruned_meanwhile_is_forgotten(filled: TargetCache) -> None:
    gone = filled.shards[0]
    gone.path.with_suffix(".json").unlink()
    gone.path.unlink()
    filled.refresh()
    assert gone.entry.name not in {shard.entry.name for shard in filled.shards}
    assert filled.num_documents == 30 - gone.entry.documents
    left = np.flatnonzero(filled.targets_of(DOCUMENTS.uids) >= 0)
    assert len(filled.read(DOCUMENTS.uids[left])) == int(DOCUMENTS.num_targets[left].sum())


def test_a_shard_that_is_cut_off_while_it_is_read_is_named(filled: TargetCache) -> None:
    path = filled.shards[0].path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{path.name}: was cut off while it was read"):
        filled.read(DOCUMENTS.uids)


def test_ids_that_end_with_zero_bytes_are_kept_whole(filled: TargetCache) -> None:
    """NumPy's byte strings end at their last byte that is not zero."""
    names = [bytes([7]) + bytes(15), bytes([7, 1]) + bytes(14)]
    filled.add([DocumentRecord(name, 1 + number, b"") for number, name in enumerate(names)])
    ids = np.frombuffer(b"".join(names), np.uint8).reshape(2, 16)
    for cache in (filled, TargetCache.open(filled.path)):
        assert cache.targets_of(ids).tolist() == [1, 2]
        assert {bytes(uid.tobytes()) for uid in cache.document_ids()} >= set(names)
