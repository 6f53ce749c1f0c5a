"""What a run is measured on: the same documents, rows and byte counts for every model it compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerFast

from stillhouse.data.document import DocumentSet, Int64Array
from stillhouse.data.masking import beginning_ids
from stillhouse.data.rows import Row
from stillhouse.evaluation.content_bytes import content_bytes
from stillhouse.randomness import numpy_generator
from stillhouse.recipe import GenerationConfig

if TYPE_CHECKING:
    from stillhouse.data.chat import ChatFormat
    from stillhouse.data.prepare import Prepared
    from stillhouse.evaluation.metrics.choices import ChoiceSet
    from stillhouse.evaluation.metrics.table import GeneratedMetric


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents for NLL, and the rows to generate for.

    ``byte_counts`` int64 [D]: UTF-8 bytes of each document's content. ``scored`` rows carry a gold
    answer for exact match, ``checked`` ones what other scores need; ``shown`` rows become the
    samples of the report. A row may be in several. ``choices`` are scored by likelihood, and
    ``calibrated`` says whether calibration is measured. ``notes`` are for people: what is not scored.
    """

    documents: DocumentSet
    end_of_turn_ids: frozenset[int]
    byte_counts: Int64Array
    scored: tuple[Row, ...]
    shown: tuple[Row, ...]
    checked: tuple[tuple[GeneratedMetric, tuple[Row, ...]], ...] = ()
    choices: ChoiceSet | None = None
    calibrated: bool = False
    notes: tuple[str, ...] = ()

    @property
    def prompted(self) -> list[Row]:
        """Every row to generate for, once."""
        checked = (row for _, rows in self.checked for row in rows)
        return list(dict.fromkeys((*self.scored, *checked, *self.shown)))

    def identity(self) -> bytes:
        """Return a digest of everything here that a measurement depends on."""
        digest = hashlib.blake2b(digest_size=16)
        rows = [[r.id, r.domain, r.answer, list(r.contents), asdict(r.checks)] for r in self.prompted]
        names = [[metric.name, [self.prompted.index(row) for row in rows]] for metric, rows in self.checked]
        counts = [len(self.scored), len(self.shown), self.calibrated]
        digest.update(json.dumps([rows, names, counts, self.documents.domains]).encode())
        for documents in (self.documents, *(() if self.choices is None else (self.choices.documents,))):
            digest.update(documents.uids.tobytes() + documents.domain_ids.tobytes())
        return digest.digest()


def build_held_out(
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat | None,
    config: GenerationConfig,
    *,
    seed: int,
) -> HeldOut:
    """Choose rows by ``seed``, spread evenly over domains, and count the bytes of the documents.

    ``tokenizer`` is the one the documents were made with; ``chat_format`` is its chat template, or
    None without one. Raw text has no prompt, so nothing is generated for it.
    """
    ends = stop_ids(tokenizer, chat_format)
    prompted = [row for row in prepared.rows if row.text is None]
    answered = [row for row in prompted if row.answer is not None]
    return HeldOut(
        documents=prepared.documents,
        end_of_turn_ids=ends,
        byte_counts=content_bytes(prepared.documents, tokenizer, ends),
        scored=spread_over_domains(answered, config.rows, seed=seed, purpose="scored-rows"),
        shown=spread_over_domains(prompted, config.samples, seed=seed, purpose="shown-rows"),
    )


def stop_ids(tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat | None) -> frozenset[int]:
    """Return the ids that end an answer: the chat template's end-of-turn tokens, and the tokenizer's EOS."""
    eos = frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})
    return eos if chat_format is None else eos | chat_format.end_of_turn_ids


def spread_over_domains(rows: Sequence[Row], count: int, *, seed: int, purpose: str) -> tuple[Row, ...]:
    """Return up to ``count`` rows, drawn in turn from each domain (in order of name) until all are empty.

    The draw within a domain depends on seed, purpose and the domain's number, and a larger count
    only adds rows.
    """
    queues: list[list[Row]] = []
    for number, name in enumerate(sorted({row.domain for row in rows})):
        members = [row for row in rows if row.domain == name]
        order = numpy_generator(seed, purpose, number).permutation(len(members))
        queues.append([members[int(i)] for i in order])
    longest = max(map(len, queues), default=0)
    drawn = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return tuple(drawn[:count])


def prompt_encoder(tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat | None) -> Callable[[Row], list[int]]:
    """Return the function from a row to the ids that a model continues.

    They are the ids that training conditions on: up to the last assistant turn, or the plain
    prompt behind the tokenizer's BOS where there is no chat template.
    """
    if chat_format is not None:
        return lambda row: chat_format.render_prompt(row.messages or ())
    beginning = beginning_ids(tokenizer)
    return lambda row: beginning + tokenizer(row.prompt or "", add_special_tokens=False)["input_ids"]


def prompt_text(row: Row) -> str:
    """Return the prompt for people: a single user turn as it is, otherwise every turn with its role."""
    turns = row.messages or ()
    if turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def gold_text(row: Row) -> str:
    """Return the last assistant turn."""
    return (row.messages or ())[-1].content
