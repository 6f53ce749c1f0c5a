"""Rows of any format to token ids and loss masks, cut to the length that a model is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.data.chat import ChatFormat, Rejection
from stillhouse.data.document import BoolArray, Int32Array
from stillhouse.data.masking import Encoded, SpanTokenizer, beginning_ids, special_token_pattern
from stillhouse.data.rows import Row
from stillhouse.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Outcome:
    """The documents of one row, at least one."""

    pieces: list[Encoded]
    truncated: bool = False


class RowEncoder:
    """Encodes rows of any format with one tokenizer, many at a time and in order."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, max_seq_len: int, template: str | None) -> None:
        """``template`` is Jinja text, or None for the tokenizer's own."""
        self._tokenizer = tokenizer
        self._max_seq_len = max_seq_len
        self._template = template
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
            short = Rejection("empty_targets", "a single token, and nothing predicts it")
            outcomes.append(self._unusable(row, row.text or "") or (Outcome(documents) if documents else short))
        return outcomes

    def _unusable(self, row: Row, wanted: str) -> Rejection | None:
        if not wanted.strip():
            return Rejection("empty", "nothing to learn from: only white space")
        for content in row.contents:
            if special := self._specials.search(content):
                return Rejection("special_token_in_content", f"the text contains {special.group()!r}")
        return None

    def _cut(self, ids: Int32Array, mask: BoolArray) -> Outcome | Rejection:
        truncated = len(ids) > self._max_seq_len
        kept = mask[: self._max_seq_len]
        if not kept.any():
            return Rejection("empty_targets", f"the first {self._max_seq_len} tokens (data.max_seq_len) hold no target")
        return Outcome([(ids[: self._max_seq_len], kept)], truncated)
