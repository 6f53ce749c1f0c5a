"""From rows to documents: tokenize, cut, drop duplicates, and count everything that was not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.data.chat import ChatFormat, Rejection
from stillhouse.data.document import BoolArray, Document, DocumentSet, Int32Array, document_uid
from stillhouse.data.masking import Encoded, SpanTokenizer, beginning_ids, special_token_pattern
from stillhouse.data.rows import Row
from stillhouse.errors import DataError
from stillhouse.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REJECTIONS: tuple[str, ...] = (
    "bad_role_order",
    "special_token_in_content",
    "empty",
    "refused_by_template",
    "empty_targets",
)
EXAMPLES_SHOWN = 5
ROWS_AT_A_TIME = 1024


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
    """The documents of one split; ``documents.rows[i]`` is the index in ``rows`` of document i's row."""

    documents: DocumentSet
    rows: list[Row]
    report: DataReport


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

    encoder = RowEncoder(tokenizer, config, base_dir)
    documents: list[Document] = []
    row_numbers: list[int] = []
    counts: Counter[str] = Counter()
    rejections: list[tuple[Row, Rejection]] = []
    empty_targets: list[Row] = []
    seen: set[bytes] = set()
    for number, (row, outcome) in enumerate(zip(rows, encoder.encode(rows), strict=True)):
        if isinstance(outcome, Rejection):
            rejections.append((row, outcome))
            continue
        counts["truncated"] += outcome.truncated
        if not outcome.pieces:
            empty_targets.append(row)
        for ids, mask in outcome.pieces:
            uid = document_uid(ids, mask, tokenizer_hash)
            if uid in held_out:
                counts["leaked_into_evaluation"] += 1
            elif config.deduplicate and uid in seen:
                counts["duplicates"] += 1
            else:
                documents.append(Document(ids, mask, numbers[row.domain], uid))
                row_numbers.append(number)
            seen.add(uid)

    rejected = dict.fromkeys(REJECTIONS, 0) | Counter(r.reason for _, r in rejections)
    rejected["empty_targets"] = len(empty_targets)
    examples = [f"{row.where}: {rejection.reason}: {rejection.detail}" for row, rejection in rejections]
    examples += [
        f"{row.where}: empty_targets: no target in data.max_seq_len={config.max_seq_len}" for row in empty_targets
    ]
    _stop_if_too_many(len(rows), rejected, examples, config.max_rejected_fraction)
    kept, positions = np.unique(np.array(row_numbers, np.int64), return_inverse=True)
    built = DocumentSet.build(documents, (int(p) for p in positions), names, tokenizer_hash)
    report = DataReport(
        rows=len(rows),
        documents=len(built),
        tokens=len(built.tokens),
        targets=int(built.mask.sum()),
        rejected=rejected,
        rejected_examples=tuple(examples[:EXAMPLES_SHOWN]),
        truncated=counts["truncated"],
        duplicates=counts["duplicates"],
        leaked_into_evaluation=counts["leaked_into_evaluation"],
        domains=_count_domains(built),
    )
    return Prepared(built, [rows[int(i)] for i in kept], report)


def _stop_if_too_many(num_rows: int, rejected: dict[str, int], examples: list[str], limit: float) -> None:
    num_rejected = sum(rejected.values())
    if num_rejected <= limit * num_rows:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items() if count)
    shown = "\n  ".join(examples[:EXAMPLES_SHOWN])
    raise DataError(
        f"{num_rejected} of {num_rows} rows cannot be used ({reasons}), more than data.max_rejected_fraction={limit}"
        f" allows. Mend the rows, or raise that limit. The first ones:\n  {shown}"
    )


def _count_domains(documents: DocumentSet) -> dict[str, DomainCounts]:
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


# --- encoding -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The documents of one row, none if nothing of it is a target."""

    pieces: list[Encoded]
    truncated: bool = False


class RowEncoder:
    """Encodes rows of any format with one tokenizer, many at a time and in order."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: DataConfig, base_dir: Path) -> None:
        self._tokenizer = tokenizer
        self._max_seq_len = config.max_seq_len
        self._template = _read_template(config.chat_template, base_dir)
        self._chat: ChatFormat | None = None
        self._specials = special_token_pattern(tokenizer)
        self._spans = SpanTokenizer(tokenizer)
        self._beginning = beginning_ids(tokenizer)

    def encode(self, rows: Sequence[Row]) -> Iterator[Outcome | Rejection]:
        """Yield the outcome of each row.

        Raises:
            DataError: conversations, and no usable chat template.
        """
        remaining = iter(rows)
        while chunk := list(islice(remaining, ROWS_AT_A_TIME)):
            outcomes: dict[int, Outcome | Rejection] = {}
            for select, encode in (
                (self._is_text, self._encode_texts),
                (self._is_plain, self._encode_plain),
                (self._is_chat, self._encode_chats),
            ):
                chosen = [number for number, row in enumerate(chunk) if select(row)]
                outcomes.update(zip(chosen, encode([chunk[n] for n in chosen]), strict=True))
            yield from (outcomes[number] for number in range(len(chunk)))

    def _is_text(self, row: Row) -> bool:
        return row.text is not None

    def _is_plain(self, row: Row) -> bool:
        """A prompt and completion for a tokenizer without a chat template."""
        return row.prompt is not None and self._template is None and not self._tokenizer.chat_template

    def _is_chat(self, row: Row) -> bool:
        return row.messages is not None and not self._is_plain(row)

    def _encode_chats(self, rows: list[Row]) -> list[Outcome | Rejection]:
        if not rows:
            return []
        if self._chat is None:
            self._chat = ChatFormat(self._tokenizer, self._template)
        found = self._chat.encode_batch([row.messages or () for row in rows])
        return [e if isinstance(e, Rejection) else self._cut(*e) for e in found]

    def _encode_plain(self, rows: list[Row]) -> list[Outcome | Rejection]:
        """Prompt, completion, eos: the last two are targets."""
        eos = self._tokenizer.eos_token_id
        if rows and eos is None:
            raise DataError(
                f"tokenizer {self._tokenizer.name_or_path!r} has neither a chat template nor an eos token, so a model"
                " could never learn to stop; give data.chat_template, or a tokenizer with an eos token"
            )
        pairs = [(row.prompt or "", row.completion or "") for row in rows]
        encoded = self._spans.encode([p + c for p, c in pairs], [[(len(p), len(p + c))] for p, c in pairs])
        outcomes: list[Outcome | Rejection] = []
        for row, (ids, mask) in zip(rows, encoded, strict=True):
            head = np.array(self._beginning, np.int32)
            all_ids = np.concatenate([head, ids, np.array([eos], np.int32)])
            all_mask = np.concatenate([np.zeros(len(head), np.bool_), mask, np.ones(1, np.bool_)])
            outcomes.append(self._unusable(row, row.completion or "") or self._cut(all_ids, all_mask))
        return outcomes

    def _encode_texts(self, rows: list[Row]) -> list[Outcome | Rejection]:
        """BOS where the tokenizer writes one, the text, eos where it has one; every token but the first is a target."""
        eos = self._tokenizer.eos_token_id
        outcomes: list[Outcome | Rejection] = []
        for row, ids in zip(rows, self._spans.ids([row.text or "" for row in rows]), strict=True):
            end = [] if eos is None else [eos]
            tokens = np.concatenate([np.array(self._beginning, np.int32), ids, np.array(end, np.int32)])
            pieces = [tokens[i : i + self._max_seq_len] for i in range(0, len(tokens), self._max_seq_len)]
            # A piece of one token has no target.
            documents = [(piece, np.arange(len(piece)) > 0) for piece in pieces if len(piece) > 1]
            outcomes.append(self._unusable(row, row.text or "") or Outcome(documents))
        return outcomes

    def _unusable(self, row: Row, wanted: str) -> Rejection | None:
        if not wanted.strip():
            return Rejection("empty", "nothing to learn from: only white space")
        for content in row.contents:
            if special := self._specials.search(content):
                return Rejection("special_token_in_content", f"the text contains {special.group()!r}")
        return None

    def _cut(self, ids: Int32Array, mask: BoolArray) -> Outcome:
        truncated = len(ids) > self._max_seq_len
        ids, mask = ids[: self._max_seq_len], mask[: self._max_seq_len]
        return Outcome([(ids, mask)] if mask.any() else [], truncated)


def _read_template(name: str | None, base_dir: Path) -> str | None:
    if name is None:
        return None
    path = base_dir / Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.chat_template={name}: {path} cannot be read: {error}; give a Jinja file") from error
