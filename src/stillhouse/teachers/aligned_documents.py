"""The student's documents as a teacher with another tokenizer reads them, token groups included.

Each document's row is rendered again with the teacher's own chat template and tokenizer. What the
assistant says is the same text on both sides, so its tokens are put into groups by the bytes of each
turn's content; headers, control tokens and the end of turn are nobody's groups. A piece of raw text is
decoded from the student's tokens, because a row may have been cut into many.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.data.chat import Rejection
from stillhouse.data.document import BoolArray, Document, DocumentSet, Int32Array, Int64Array, document_uid
from stillhouse.data.encoding import RowEncoder
from stillhouse.data.prepare import Prepared
from stillhouse.data.rows import Row
from stillhouse.divergence.cross_tokenizer.alignment import UNGROUPED, Spans, align, place
from stillhouse.errors import DataError
from stillhouse.models.token_bytes import token_bytes
from stillhouse.models.tokenizers import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EXAMPLES_SHOWN = 3


@dataclass(frozen=True)
class AlignmentReport:
    """How much of the student's targets the teacher says something about."""

    documents: int
    unaligned: int
    """Documents whose text was not found in the teacher's rendering: they have cross-entropy alone."""
    groups: int
    targets: int
    grouped_targets: int
    examples: tuple[str, ...] = ()
    """The first unaligned rows, with the reason."""

    @property
    def coverage(self) -> float:
        """Share of the student's targets, ends of turns included, that stand in a group."""
        return self.grouped_targets / self.targets if self.targets else 0.0


@dataclass(frozen=True)
class AlignedDocuments:
    """One teacher document for each of the student's, and the groups of both.

    ``teacher``: its ``mask`` marks the tokens in groups, and a document ends with the last of them.
    student_groups int64 [sum of the student's targets], teacher_groups int64 [sum of the teacher's]:
    numbered from 0 in each document, -1 for none. num_groups int64 [D]. ``student_targets`` int64 [D].
    """

    teacher: DocumentSet
    student_groups: Int64Array
    teacher_groups: Int64Array
    student_targets: Int64Array
    num_groups: Int64Array
    report: AlignmentReport


def align_documents(
    prepared: Prepared,
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    *,
    max_teacher_len: int,
    max_unaligned_fraction: float,
) -> AlignedDocuments:
    """Render and align all documents of ``prepared``, which ``student`` tokenized.

    Teacher tokens from ``max_teacher_len`` on are left out, with their groups. Raises DataError, with the
    first reasons, when more than ``max_unaligned_fraction`` of the documents cannot be aligned, and where
    conversations meet a teacher without a chat template; ModelError for a tokenizer whose bytes are unknown.
    """
    documents = prepared.documents
    rows = [prepared.rows[int(i)] for i in documents.rows]
    require_chat_template(rows, teacher)
    aligner = _Aligner(token_bytes(student), token_bytes(teacher), max_teacher_len)
    pieces = [_teacher_row(row, document, aligner) for row, document in zip(rows, documents, strict=True)]
    encoder = RowEncoder(teacher, max_seq_len=sys.maxsize, template=None)
    collected = _Collected(tokenizer_hash(teacher))
    for row, piece, document, outcome in zip(rows, pieces, documents, encoder.encode(pieces), strict=True):
        if isinstance(outcome, Rejection):
            # A piece of raw text may hold nothing but half a character or a space.
            no_text = piece.text is not None and outcome.reason == "empty"
            collected.leave_out(document, row, None if no_text else f"{outcome.reason}: {outcome.detail}")
            continue
        ((ids, mask),) = outcome.pieces
        found = aligner.align(document, ids, mask, piece)
        if found is None:
            collected.leave_out(document, row, "its text is not what the teacher's template writes")
        else:
            collected.add(document, ids, *found)
    aligned = collected.finish(documents)
    report = aligned.report
    if report.unaligned > max_unaligned_fraction * report.documents:
        shown = "\n  ".join(report.examples)
        raise DataError(
            f"objective cross_tokenizer: {report.unaligned} of {report.documents} documents cannot be aligned with the "
            f"teacher's tokens, more than data.max_rejected_fraction={max_unaligned_fraction} allows. Use a teacher whose "
            f"chat template keeps contents as they are, or raise that limit. The first ones:\n  {shown}"
        )
    return aligned


def require_chat_template(rows: Sequence[Row], teacher: PreTrainedTokenizerFast) -> None:
    """Raise DataError when there are conversations and the teacher's tokenizer has no template to write them."""
    if any(row.messages and row.prompt is None for row in rows) and not teacher.chat_template:
        raise DataError(
            f"teacher.path: the tokenizer {teacher.name_or_path!r} has no chat template, so the conversations cannot be "
            "written as this teacher reads them; use an instruction-tuned teacher, or prompt and completion columns"
        )


def _teacher_row(row: Row, document: Document, aligner: _Aligner) -> Row:
    """The row to render for one document: for raw text, the text of this very piece."""
    if row.text is None:
        return row
    written = b"".join(aligner.student_bytes(document.input_ids))
    # A piece may begin or end inside a character, which the neighbouring piece has the rest of.
    return replace(row, text=written.decode("utf-8", errors="ignore"))


@dataclass(frozen=True)
class _Aligner:
    student: Sequence[bytes | None]
    teacher: Sequence[bytes | None]
    max_teacher_len: int

    def student_bytes(self, ids: Int32Array) -> list[bytes]:
        return [self.student[int(i)] or b"" for i in ids]

    def teacher_bytes(self, ids: Int32Array) -> list[bytes]:
        return [self.teacher[int(i)] or b"" for i in ids]

    def align(
        self, document: Document, ids: Int32Array, mask: BoolArray, row: Row
    ) -> tuple[Int64Array, Int64Array] | None:
        """Return the group of each student token and of each teacher token, or None where the texts differ."""
        ours = np.full(document.num_tokens, UNGROUPED, np.int64)
        theirs = np.full(len(ids), UNGROUPED, np.int64)
        usable = mask & (np.arange(len(ids)) < self.max_teacher_len)
        if row.text is not None:
            turns = [(row.text, (0, document.num_tokens), (0, len(ids)))]
        else:
            contents = [m.content for m in row.messages or () if m.role == "assistant"]
            runs, teacher_runs = _runs(document.loss_mask), _runs(mask)
            if len(teacher_runs) != len(contents) or len(runs) > len(contents):
                return None
            turns = list(zip(contents, runs, teacher_runs, strict=False))  # the student's end may be cut off
        number = 0
        for content, (start, stop), (teacher_start, teacher_stop) in turns:
            if not content.strip():
                continue
            placed = place(self.student_bytes(document.input_ids[start:stop]), content.encode())
            teacher_placed = place(self.teacher_bytes(ids[teacher_start:teacher_stop]), content.encode())
            if teacher_placed is None:
                return None
            if placed is None:
                if b"".join(self.student_bytes(document.input_ids[start:stop])).strip():
                    return None
                continue  # cut off before its first word
            here = align(
                _only(*placed, document.loss_mask[start:stop]),
                _only(*teacher_placed, usable[teacher_start:teacher_stop]),
            )
            for groups, part in ((ours[start:stop], here[0]), (theirs[teacher_start:teacher_stop], here[1])):
                groups[:] = np.where(part >= 0, part + number, UNGROUPED)
            number += int(here[0].max(initial=-1)) + 1
        return ours, theirs


def _only(spans: Spans, same: BoolArray, usable: BoolArray) -> Spans:
    """Leave no bytes to the tokens that cannot be in a group."""
    ends = np.where(same & usable, spans.ends, spans.starts)
    return Spans(spans.starts, ends)


def _runs(mask: BoolArray) -> list[tuple[int, int]]:
    """The stretches [start, stop) where the mask is True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


class _Collected:
    """Teacher documents and groups so far."""

    def __init__(self, teacher_hash: str) -> None:
        self._hash = teacher_hash
        self._documents: list[Document] = []
        self._student: list[Int64Array] = []
        self._teacher: list[Int64Array] = []
        self._counts: list[int] = []
        self._unaligned = 0
        self._examples: list[str] = []

    def leave_out(self, document: Document, row: Row, problem: str | None) -> None:
        """Add a document without groups; ``problem`` None: there was no text to align."""
        self._unaligned += problem is not None
        if problem is not None and len(self._examples) < EXAMPLES_SHOWN:
            self._examples.append(f"{row.where}: {problem}")
        none = np.full(document.num_tokens, UNGROUPED, np.int64)
        self.add(document, np.zeros(1, np.int32), none, none[:1])

    def add(
        self,
        document: Document,
        ids: Int32Array,
        student_groups: Int64Array,
        teacher_groups: Int64Array,
    ) -> None:
        grouped = teacher_groups >= 0
        length = int(np.flatnonzero(grouped)[-1]) + 1 if grouped.any() else 1
        ids, grouped = ids[:length], grouped[:length]
        self._documents.append(Document(ids, grouped, document.domain, document_uid(ids, grouped, self._hash)))
        self._student.append(student_groups[document.loss_mask])
        self._teacher.append(teacher_groups[:length][grouped])
        self._counts.append(int(teacher_groups.max(initial=UNGROUPED)) + 1)

    def finish(self, documents: DocumentSet) -> AlignedDocuments:
        nothing = np.zeros(0, np.int64)
        student = np.concatenate([nothing, *self._student])
        report = AlignmentReport(
            documents=len(documents),
            unaligned=self._unaligned,
            groups=sum(self._counts),
            targets=len(student),
            grouped_targets=int((student >= 0).sum()),
            examples=tuple(self._examples),
        )
        return AlignedDocuments(
            teacher=DocumentSet.build(self._documents, documents.rows.tolist(), documents.domains, self._hash),
            student_groups=student,
            teacher_groups=np.concatenate([nothing, *self._teacher]),
            student_targets=documents.num_targets,
            num_groups=np.array(self._counts, np.int64),
            report=report,
        )
