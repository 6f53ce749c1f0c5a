"""From rows to documents: tokenize, cut, drop duplicates, and count everything that was not used."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from stillhouse.data.chat import Rejection, RejectionReason
from stillhouse.data.document import Document, DocumentSet, document_uid
from stillhouse.data.encoding import RowEncoder
from stillhouse.data.rows import Row
from stillhouse.errors import DataError
from stillhouse.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REJECTIONS: tuple[str, ...] = get_args(RejectionReason)
EXAMPLES_SHOWN = 5


@dataclass(frozen=True)
class DomainCounts:
    """What one domain contributes."""

    documents: int
    tokens: int
    targets: int


@dataclass(frozen=True)
class DataReport:
    """What became of the rows of one split. Rejected rows give no document."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    targets: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTIONS, 0))
    """Rows per reason: wrong role order, a special-token string in a content, no content, refused
    or changed by the chat template, no target left after truncation."""
    rejected_examples: tuple[str, ...] = ()
    truncated: int = 0
    """Conversations cut at `data.max_seq_len`."""
    duplicates: int = 0
    """Documents left out because an equal one came before."""
    leaked_into_evaluation: int = 0
    """Training rows and documents left out because validation or test has the same prompt or tokens."""
    domains: dict[str, DomainCounts] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def num_rejected(self) -> int:
        """Rows that gave no document for one of the reasons in ``rejected``."""
        return sum(self.rejected.values())

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {
            "rejected_examples": list(self.rejected_examples),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Prepared:
    """The documents of one split; ``documents.rows[i]`` is the index in ``rows`` of document i's row.

    ``questions`` have no answer, so no document, and are only scored.
    """

    documents: DocumentSet
    rows: list[Row]
    report: DataReport
    questions: tuple[Row, ...] = ()


def prepare(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
    *,
    domains: Sequence[str] | None = None,
    tokenizer_hash: str,
    base_dir: Path = Path(),
    held_out: Collection[bytes] = frozenset(),
) -> Prepared:
    """Tokenize rows into documents.

    Conversations are cut at the end, raw texts into pieces of at most ``max_seq_len`` tokens, each
    a document of its own. Documents whose uid is in ``held_out`` are left out. ``domains`` fixes
    the numbering; None takes the sorted domains of the rows. ``data.chat_template`` is found from
    ``base_dir``.

    Raises:
        DataError: more than ``max_rejected_fraction`` of the rows are unusable, a row has a domain
            that ``domains`` lacks, or conversations meet a tokenizer without a chat template.
    """
    names = tuple(sorted({row.domain for row in rows}) if domains is None else domains)
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted({row.domain for row in rows} - numbers.keys()):
        raise DataError(f"rows have domains {unknown} that are not among {list(names)}; add them or set `domain_map`")

    template = read_template(config.chat_template, base_dir)
    encoder = RowEncoder(tokenizer, max_seq_len=config.max_seq_len, template=template)
    tally = _Tally(config.deduplicate, held_out)
    for number, (row, outcome) in enumerate(zip(rows, encoder.encode(rows), strict=True)):
        if isinstance(outcome, Rejection):
            tally.reject(row, outcome)
        else:
            tally.truncated += outcome.truncated
            for ids, mask in outcome.pieces:
                tally.offer(Document(ids, mask, numbers[row.domain], document_uid(ids, mask, tokenizer_hash)), number)
    _stop_if_too_many(len(rows), tally.rejected, tally.examples, config.max_rejected_fraction)

    kept, positions = np.unique(np.array(tally.row_numbers, np.int64), return_inverse=True)
    documents = DocumentSet.build(tally.documents, (int(p) for p in positions), names, tokenizer_hash)
    report = DataReport(
        rows=len(rows),
        documents=len(documents),
        tokens=len(documents.tokens),
        targets=int(documents.mask.sum()),
        rejected=tally.rejected,
        rejected_examples=tuple(tally.examples),
        truncated=tally.truncated,
        duplicates=tally.duplicates,
        leaked_into_evaluation=tally.leaked,
        domains=count_domains(documents),
    )
    return Prepared(documents, [rows[int(i)] for i in kept], report)


class _Tally:
    """The documents so far, and the counts of what was left out."""

    def __init__(self, deduplicate: bool, held_out: Collection[bytes]) -> None:
        self.documents: list[Document] = []
        self.row_numbers: list[int] = []
        self.rejected: dict[str, int] = dict.fromkeys(REJECTIONS, 0)
        self.examples: list[str] = []
        self.truncated = self.duplicates = self.leaked = 0
        self._deduplicate = deduplicate
        self._held_out = held_out
        self._seen: set[bytes] = set()

    def reject(self, row: Row, rejection: Rejection) -> None:
        self.rejected[rejection.reason] += 1
        if len(self.examples) < EXAMPLES_SHOWN:
            self.examples.append(f"{row.where}: {rejection.reason}: {rejection.detail}")

    def offer(self, document: Document, row_number: int) -> None:
        """Take the document, unless it is held out or a duplicate."""
        if document.uid in self._held_out:
            self.leaked += 1
        elif self._deduplicate and document.uid in self._seen:
            self.duplicates += 1
        else:
            self._seen.add(document.uid)
            self.documents.append(document)
            self.row_numbers.append(row_number)


def _stop_if_too_many(num_rows: int, rejected: dict[str, int], examples: list[str], limit: float) -> None:
    num_rejected = sum(rejected.values())
    if num_rejected <= limit * num_rows:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items() if count)
    shown = "\n  ".join(examples)
    raise DataError(
        f"{num_rejected} of {num_rows} rows cannot be used ({reasons}), more than data.max_rejected_fraction={limit}"
        f" allows. Mend the rows, or raise that limit. The first ones:\n  {shown}"
    )


def count_domains(documents: DocumentSet) -> dict[str, DomainCounts]:
    """What each domain contributes to a set."""
    size = len(documents.domains)
    ids = documents.domain_ids
    per_domain = zip(
        np.bincount(ids, minlength=size),
        np.bincount(ids, weights=documents.lengths, minlength=size),
        np.bincount(ids, weights=documents.num_targets, minlength=size),
        strict=True,
    )
    return {
        name: DomainCounts(int(count), int(tokens), int(targets))
        for name, (count, tokens, targets) in zip(documents.domains, per_domain, strict=True)
    }


def read_template(name: str | None, base_dir: Path) -> str | None:
    """Return the Jinja text of ``data.chat_template``, or None where the tokenizer's own is used.

    Raises:
        DataError: the file cannot be read.
    """
    if name is None:
        return None
    path = base_dir / Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.chat_template={name}: {path} cannot be read: {error}; give a Jinja file") from error
