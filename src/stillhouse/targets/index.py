"""Where each document of a cache is: content ids in order, found by bisection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillhouse.targets.bitpack import IntArray
from stillhouse.targets.shards import Shard, Uids

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class DocumentIndex:
    """Sorted keys, and for each the number of its shard, its place there and its targets; all [D], 28 bytes a document."""

    keys: Uids
    shard: Int32Array
    place: Int32Array
    targets: Int32Array

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> DocumentIndex:
        """Sort the documents of all shards once. Two captures may both have written one; its first shard serves."""
        found = [shard.index() for shard in shards]
        counts = [len(uids) for uids, _ in found]
        nothing = np.zeros(0, np.int32)
        keys = np.concatenate([np.zeros(0, "S16"), *(uids for uids, _ in found)])
        unique, first = np.unique(keys, return_index=True)
        place = np.concatenate([nothing, *(np.arange(count, dtype=np.int32) for count in counts)])
        targets = np.concatenate([nothing, *(targets for _, targets in found)])
        shard = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        return cls(unique, shard[first], place[first], targets[first])

    def with_shard(self, number: int, shard: Shard) -> DocumentIndex:
        """Return the index with one more shard, whose documents are merged in: nothing is sorted again."""
        uids, targets = shard.index()
        new = np.flatnonzero(self.find(uids) < 0)
        at = np.searchsorted(self.keys, uids[new])
        return DocumentIndex(
            keys=np.insert(self.keys, at, uids[new]),
            shard=np.insert(self.shard, at, np.int32(number)),
            place=np.insert(self.place, at, new.astype(np.int32)),
            targets=np.insert(self.targets, at, targets[new]),
        )

    def find(self, keys: Uids) -> IntArray:
        """Return the row of each key, -1 where it is absent."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[rows] == keys, rows, -1)
