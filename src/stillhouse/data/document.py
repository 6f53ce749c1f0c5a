"""Documents: the unit of everything downstream.

A document is one tokenized conversation, or one piece of raw text. Documents never see each
other, whatever the batching, so what a teacher says about a document depends on the document
alone and may be kept under its content id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

UID_BYTES = 16


def document_uid(input_ids: Int32Array, loss_mask: BoolArray, tokenizer_hash: str) -> bytes:
    """Return the 128-bit content id: BLAKE2b of tokenizer, ids and mask."""
    digest = hashlib.blake2b(tokenizer_hash.encode(), digest_size=UID_BYTES)
    digest.update(np.ascontiguousarray(input_ids, dtype="<i4").tobytes())
    digest.update(np.packbits(loss_mask).tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Document:
    """One tokenized document.

    ``input_ids`` int32 [T]; ``loss_mask`` bool [T]: token t is a target, scored from the hidden
    state at t-1, so ``loss_mask[0]`` is False; ``domain`` indexes the set's ``domains``.
    """

    input_ids: Int32Array
    loss_mask: BoolArray
    domain: int
    uid: bytes

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int(self.loss_mask.sum())


@dataclass(frozen=True)
class DocumentSet:
    """Many documents in flat columns, so that a large set is a few arrays and not many objects.

    ``tokens`` int32 [sum T]; ``mask`` bool [sum T]; ``offsets`` int64 [D+1]; ``domain_ids``
    int16 [D]; ``uids`` uint8 [D, 16]; ``rows`` int64 [D], the index of the source row that each
    document came from (several pieces of one text share a row).
    """

    tokens: Int32Array
    mask: BoolArray
    offsets: Int64Array
    domain_ids: npt.NDArray[np.int16]
    uids: npt.NDArray[np.uint8]
    rows: Int64Array
    domains: tuple[str, ...]
    tokenizer_hash: str
    _targets: Int64Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = np.add.reduceat(self.mask.astype(np.int64), self.offsets[:-1]) if len(self) else np.zeros(0, np.int64)
        object.__setattr__(self, "_targets", counts)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Document:
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return Document(
            self.tokens[start:stop], self.mask[start:stop], int(self.domain_ids[index]), self.uids[index].tobytes()
        )

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> Int64Array:
        """Tokens per document, int64 [D]."""
        return np.diff(self.offsets)

    @property
    def num_targets(self) -> Int64Array:
        """Target tokens per document, int64 [D]."""
        return self._targets

    def select(self, indices: Sequence[int] | Int64Array) -> DocumentSet:
        """Return a new set with the documents at ``indices``, in that order."""
        chosen = [self[int(i)] for i in indices]
        rows = [int(self.rows[int(i)]) for i in indices]
        return DocumentSet.build(chosen, rows, self.domains, self.tokenizer_hash)

    @classmethod
    def build(
        cls, documents: Iterable[Document], rows: Iterable[int], domains: Sequence[str], tokenizer_hash: str
    ) -> DocumentSet:
        """Lay documents out in columns; ``rows[i]`` is the source row of document i."""
        docs = list(documents)
        offsets = np.zeros(len(docs) + 1, np.int64)
        np.cumsum([d.num_tokens for d in docs], out=offsets[1:])
        return cls(
            tokens=np.concatenate([d.input_ids for d in docs]) if docs else np.zeros(0, np.int32),
            mask=np.concatenate([d.loss_mask for d in docs]) if docs else np.zeros(0, np.bool_),
            offsets=offsets,
            domain_ids=np.array([d.domain for d in docs], np.int16),
            uids=np.frombuffer(b"".join(d.uid for d in docs), np.uint8).reshape(len(docs), UID_BYTES),
            rows=np.fromiter(rows, np.int64),
            domains=tuple(domains),
            tokenizer_hash=tokenizer_hash,
        )


def unite(sets: Sequence[DocumentSet]) -> DocumentSet:
    """Return the documents of several sets that number their domains alike, each uid once.

    ``rows`` are those of the set that a document came from. There must be at least one set.
    """
    first = sets[0]
    assert all(s.domains == first.domains and s.tokenizer_hash == first.tokenizer_hash for s in sets)
    unique: dict[bytes, tuple[Document, int]] = {}
    for documents in sets:
        for document, row in zip(documents, documents.rows, strict=True):
            unique.setdefault(document.uid, (document, int(row)))
    return DocumentSet.build(
        (d for d, _ in unique.values()), (r for _, r in unique.values()), first.domains, first.tokenizer_hash
    )
