"""The cache: a folder of teacher targets, keyed by document content."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillhouse.data.document import UID_BYTES, DocumentSet, Int64Array
from stillhouse.errors import DataError
from stillhouse.targets.bitpack import Bytes, IntArray
from stillhouse.targets.index import DocumentIndex, Int32Array
from stillhouse.targets.manifest import CacheIdentity, read_manifest, write_manifest
from stillhouse.targets.shards import FOLDER, DocumentRecord, Shard, ShardEntry, uid_keys, write_shard
from stillhouse.targets.sparse import SparseTargets

MERGED_AT_ONCE = 8
"""More new shards than these are sorted together, fewer are merged into the index one by one."""


class TargetCache:
    """A cache opened for reading, and for adding shards.

    Reading is safe from several threads while nothing calls ``refresh`` or ``add``.
    """

    def __init__(self, path: Path, identity: CacheIdentity) -> None:
        self.path, self.identity = path, identity
        self._wanted = identity
        self._shards: list[Shard] = []
        self._index = DocumentIndex.of([])
        self.refresh()

    @classmethod
    def open(cls, path: Path, wanted: CacheIdentity | None = None) -> TargetCache:
        """Open an existing cache.

        Raises DataError when there is none or a shard is cut off, ModelError for another teacher or
        tokenizer than ``wanted``, RecipeError for another codec, temperature or precision.
        """
        identity = read_manifest(path)
        if wanted is not None:
            difference = identity.difference(wanted)
            if difference is not None:
                raise difference
        cache = cls(path, identity)
        cache._wanted = wanted or identity
        return cache

    @classmethod
    def open_or_create(cls, path: Path, identity: CacheIdentity) -> TargetCache:
        """Open the cache of this identity, or begin it; raises as ``open``, and OutputError."""
        write_manifest(path, identity)
        return cls.open(path, identity)

    def refresh(self) -> None:
        """Look for shards that other captures have added. Raises DataError naming a damaged one."""
        names = {path.stem: path for path in (self.path / FOLDER).glob("*.json")}
        known = {shard.entry.name for shard in self._shards}
        new = [Shard(self.path, ShardEntry.read(names[name])) for name in sorted(names.keys() - known)]
        if not new and known <= names.keys():
            return
        if known <= names.keys() and len(new) < MERGED_AT_ONCE:
            index = self._index
            for number, shard in enumerate(new, start=len(self._shards)):
                index = index.with_shard(number, shard)
            self._shards, self._index = [*self._shards, *new], index
        else:
            self._shards = [shard for shard in self._shards if shard.entry.name in names] + new
            self._index = DocumentIndex.of(self._shards)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The complete shards, by name."""
        return tuple(sorted(self._shards, key=lambda shard: shard.entry.name))

    @property
    def num_documents(self) -> int:
        return len(self._index.keys)

    def document_ids(self) -> npt.NDArray[np.uint8]:
        """Return the content ids of all documents, ascending, uint8 [D, 16]."""
        return self._index.keys.view(np.uint8).reshape(-1, UID_BYTES)

    @property
    def num_targets(self) -> int:
        """Targets of distinct documents."""
        return int(self._index.targets.sum())

    def add(self, records: list[DocumentRecord]) -> ShardEntry:
        """Write one more shard and see what others have written meanwhile."""
        entry = write_shard(self.path, records)
        self.refresh()
        return entry

    def missing(self, documents: DocumentSet) -> Int64Array:
        """Return the indices of the documents that have targets to score and are not in the cache.

        A document that occurs several times is listed once.
        """
        keys = uid_keys(documents.uids)
        _, first = np.unique(keys, return_index=True)
        absent = (self._index.find(keys) < 0) & (documents.num_targets > 0)
        once = np.zeros(len(keys), np.bool_)
        once[first] = True
        return np.flatnonzero(absent & once)

    def require(self, documents: DocumentSet) -> None:
        """Raise DataError when a document is missing, with how many and the likely reason."""
        if documents.tokenizer_hash != self.identity.tokenizer:
            raise DataError(
                f"teacher.cache={self.path}: captured with tokenizer {self.identity.tokenizer}, but the documents were "
                f"tokenized by {documents.tokenizer_hash}; capture again with the student's tokenizer"
            )
        missing = self.missing(documents)
        if len(missing):
            hint = self.identity.other_template(self._wanted)
            if not hint and len(missing) == len(np.unique(uid_keys(documents.uids))):
                hint = "None of them is there: was the chat template, max_seq_len or the data changed since? "
            raise DataError(
                f"teacher.cache={self.path}: {len(missing)} of {len(documents)} documents are not in the cache. "
                f"{hint}Run `stillhouse capture` with this recipe; it adds only what is missing"
            )
        scored = documents.num_targets > 0
        if (self.targets_of(documents.uids)[scored] != documents.num_targets[scored]).any():
            raise DataError(
                f"teacher.cache={self.path}: a document has another number of targets in the cache than in the data, "
                "so a shard's index is damaged; run `stillhouse cache verify`"
            )

    def read(self, uids: Iterable[bytes] | npt.NDArray[np.uint8]) -> SparseTargets:
        """Return the targets of documents one after the other, in the given order (repeats allowed).

        uids: 16 bytes each, or uint8 [D, 16]. Raises DataError naming the first absent document.
        """
        if not isinstance(uids, np.ndarray):
            uids = np.frombuffer(b"".join(uids), np.uint8).reshape(-1, 16)
        rows = self._index.find(uid_keys(uids))
        if (rows < 0).any():
            absent = uids[int(np.flatnonzero(rows < 0)[0])].tobytes().hex()
            raise DataError(
                f"teacher.cache={self.path}: document {absent} is not in the cache; run `stillhouse capture`"
            )
        index = self._index
        pieces = self._records(index.shard[rows], index.place[rows])
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        buffer = np.concatenate([np.zeros(0, np.uint8), *pieces])
        return self.identity.codec.unpack(
            buffer,
            np.cumsum(lengths) - lengths,
            index.targets[rows].astype(np.int64),
            vocab_size=self.identity.vocab_size,
            temperature=self.identity.temperature,
        )

    def _records(self, shards: Int32Array, places: Int32Array) -> list[Bytes]:
        """The packed records of documents, each shard's file opened once."""
        pieces: list[Bytes] = [np.zeros(0, np.uint8)] * len(shards)
        for number in np.unique(shards).tolist():
            at = np.flatnonzero(shards == number).tolist()
            for position, record in zip(at, self._shards[number].records(places[at].tolist()), strict=True):
                pieces[position] = record
        return pieces

    def targets_of(self, uids: npt.NDArray[np.uint8]) -> IntArray:
        """Return the number of targets of each document, -1 where it is absent; uids uint8 [D, 16]."""
        rows = self._index.find(uid_keys(uids))
        found: IntArray = np.where(rows >= 0, np.append(self._index.targets, np.int32(-1))[rows], -1)
        return found
