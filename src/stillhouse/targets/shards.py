"""Shards: immutable safetensors files of records, each named by its checksum, each with an entry beside it.

``shards/NAME.safetensors`` holds ``uids`` uint8 [D, 16] in ascending order, ``targets`` int32 [D],
``offsets`` int64 [D+1] and ``records`` uint8. ``shards/NAME.json``, written after it, says that the
shard is complete: without an entry a shard does not exist. Nothing is ever changed in place and no
file is shared by two writers, so captures side by side cannot harm each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import save

from stillhouse.data.document import UID_BYTES
from stillhouse.errors import DataError
from stillhouse.targets.bitpack import Bytes, IntArray
from stillhouse.targets.files import checksum, file_checksum, json_bytes, read_json_object, write_file

FOLDER = "shards"
SUFFIX = ".safetensors"

Uids = npt.NDArray[np.bytes_]

_MEND = "`stillhouse cache prune` removes damaged shards, and `stillhouse capture` fills the gap"


def uid_keys(uids: npt.NDArray[np.uint8]) -> Uids:
    """Return content ids uint8 [D, 16] as one sortable key each."""
    return np.ascontiguousarray(uids).reshape(-1, UID_BYTES).view(f"S{UID_BYTES}").reshape(-1)


@dataclass(frozen=True)
class ShardEntry:
    """What the entry file says about its shard."""

    name: str
    bytes: int
    checksum: str
    documents: int
    targets: int

    @classmethod
    def read(cls, path: Path) -> ShardEntry:
        """Read an entry file. Raises DataError naming it when it is damaged."""
        content = read_json_object(path, _MEND)
        try:
            entry = cls(**content)
        except TypeError as error:
            raise DataError(f"{path}: is no shard entry ({error}); {_MEND}") from error
        if entry.name != path.stem:
            raise DataError(f"{path}: describes the shard {entry.name!r}; {_MEND}")
        return entry


@dataclass(frozen=True)
class DocumentRecord:
    """One document's record: its id, its number of targets and its packed planes."""

    uid: bytes
    targets: int
    data: bytes


def write_shard(cache: Path, records: Sequence[DocumentRecord]) -> ShardEntry:
    """Write one shard and then its entry; each uid occurs once. Raises OutputError when the disk refuses."""
    ordered = sorted(records, key=lambda record: record.uid)
    assert len({record.uid for record in ordered}) == len(ordered)
    offsets = np.zeros(len(ordered) + 1, np.int64)
    np.cumsum([len(record.data) for record in ordered], out=offsets[1:])
    content = save(
        {
            "uids": np.frombuffer(b"".join(r.uid for r in ordered), np.uint8).reshape(-1, UID_BYTES),
            "targets": np.array([r.targets for r in ordered], np.int32),
            "offsets": offsets,
            "records": np.frombuffer(b"".join(r.data for r in ordered), np.uint8),
        }
    )
    digest = checksum(content)
    entry = ShardEntry(digest, len(content), digest, len(ordered), sum(r.targets for r in ordered))
    write_file(cache / FOLDER / f"{digest}{SUFFIX}", content)
    write_file(cache / FOLDER / f"{digest}.json", json_bytes(asdict(entry)))
    return entry


class Shard:
    """One shard opened for reading.

    Only the offsets stay in memory; records are read from the file when they are asked for, so a cache may
    be many times as large as the memory, and a file that is cut off meanwhile is an error and no crash
    (as it would be if it were mapped).
    """

    def __init__(self, cache: Path, entry: ShardEntry) -> None:
        """Raises DataError naming the file when its size or layout is not what the entry says."""
        self.entry = entry
        self.path = cache / FOLDER / f"{entry.name}{SUFFIX}"
        size = self.path.stat().st_size if self.path.exists() else None
        if size is None:
            raise DataError(f"{self.path}: the shard is missing, but its entry is there; {_MEND}")
        if size != entry.bytes:
            raise DataError(f"{self.path}: holds {size} bytes instead of {entry.bytes}, so it is cut off; {_MEND}")
        with self._reading() as file:
            self._records_start, records_bytes = _place_of(self.path, "records")
            self.offsets: IntArray = file.get_tensor("offsets")
            shapes = {name: file.get_slice(name).get_shape() for name in ("uids", "targets", "offsets")}
            documents = entry.documents
            if shapes != {"uids": [documents, UID_BYTES], "targets": [documents], "offsets": [documents + 1]}:
                raise ValueError(f"its index does not have {documents} documents")
            if bool((np.diff(self.offsets) < 0).any()) or self.offsets[-1] != records_bytes:
                raise ValueError("its offsets do not fit its records")

    def index(self) -> tuple[Uids, npt.NDArray[np.int32]]:
        """Return the content ids of its documents, ascending, and their numbers of targets, [D] each."""
        with self._reading() as file:
            return uid_keys(file.get_tensor("uids")), file.get_tensor("targets")

    def records(self, places: Sequence[int]) -> list[Bytes]:
        """Return the packed planes of the documents at these places.

        Raises DataError naming the file when it has become shorter.
        """
        found = []
        handle = os.open(self.path, os.O_RDONLY)
        try:
            for place in places:
                start, stop = int(self.offsets[place]), int(self.offsets[place + 1])
                data = os.pread(handle, stop - start, self._records_start + start)
                if len(data) != stop - start:
                    raise DataError(f"{self.path}: was cut off while it was read; {_MEND}")
                found.append(np.frombuffer(data, np.uint8))
        finally:
            os.close(handle)
        return found

    def verify(self) -> None:
        """Compare the whole file with its checksum; raises DataError naming it when a byte has changed."""
        found = file_checksum(self.path)
        if found != self.entry.checksum:
            raise DataError(f"{self.path}: its checksum is {found} instead of {self.entry.checksum}; {_MEND}")

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """The file as safetensors; whatever is wrong with it becomes a DataError that names it."""
        try:
            with safetensors.safe_open(self.path, framework="np") as file:
                yield file
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{self.path}: is no shard of targets ({error}); {_MEND}") from error


def _place_of(path: Path, name: str) -> tuple[int, int]:
    """Return first byte and length of one tensor's data, from the header (eight bytes of length, then JSON)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start, stop = json.loads(file.read(length))[name]["data_offsets"]
    return 8 + length + start, stop - start
