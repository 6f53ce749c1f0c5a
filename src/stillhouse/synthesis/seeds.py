"""Human rows as seeds: an input, its answer, and what stands around every input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError
from stillhouse.synthesis.frame import Frame


@dataclass(frozen=True)
class Seed:
    """One human example; ``text`` is its input without the frame of its domain."""

    id: str
    where: str
    domain: str
    system: str | None
    text: str
    answer: str


@dataclass(frozen=True)
class SeedDomain:
    """The seeds of one domain, which are never shown beside another's."""

    name: str
    frame: Frame
    seeds: tuple[Seed, ...]
    answer_is_gold: bool
    """Whether every row's ``answer`` column repeats its last turn, so that new rows can have one too."""

    def conversation(self, text: str, system: str | None) -> list[Message]:
        """Return the turns that ask for the answer to a new input."""
        asked = Message("user", self.frame.wrap(text))
        return [asked] if system is None else [Message("system", system), asked]


def seed_domains(rows: Sequence[Row], *, frame: str | None, needed: int) -> dict[str, SeedDomain]:
    """Group rows into domains and find each domain's frame.

    Raises DataError for a row that is not one question with its answer or lacks the given frame,
    and for a domain with fewer than ``needed`` rows.
    """
    grouped: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.domain].append(row)
    if not grouped:
        raise DataError("synthesis.seeds: there is no row to start from; name a file with human examples")
    domains = {name: _domain(name, grouped[name], frame) for name in sorted(grouped)}
    for domain in domains.values():
        if len(domain.seeds) < needed:
            raise DataError(
                f"synthesis.human_examples={needed}: domain {domain.name!r} has only {len(domain.seeds)} seeds; give"
                " more human rows, or ask for fewer examples"
            )
    return domains


def _domain(name: str, rows: Sequence[Row], frame: str | None) -> SeedDomain:
    turns = [_turns(row) for row in rows]
    inputs = [question for _, question, _ in turns]
    around = Frame.shared(inputs) if frame is None else Frame.parse(frame)
    for row, text in zip(rows, inputs, strict=True):
        if not around.fits(text):
            raise DataError(f"{row.where}: the input does not have synthesis.frame, or has nothing in it; mend either")
    seeds = tuple(
        Seed(row.id, row.where, name, system, around.unwrap(question), answer)
        for row, (system, question, answer) in zip(rows, turns, strict=True)
    )
    gold = all(
        row.answer is not None and row.answer.strip() == answer.strip()
        for row, (*_, answer) in zip(rows, turns, strict=True)
    )
    return SeedDomain(name, around, seeds, gold)


def _turns(row: Row) -> tuple[str | None, str, str]:
    """Return system turn, question and answer."""
    messages = row.messages or ()
    roles = [m.role for m in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        found = "raw text" if row.messages is None else f"turns of {', '.join(roles)}"
        raise DataError(
            f"{row.where}: a seed is one user turn with its answer (a system turn may stand before), and this row is"
            f" {found}; leave such rows out of synthesis.seeds"
        )
    if not messages[-2].content.strip() or not messages[-1].content.strip():
        raise DataError(f"{row.where}: the question or the answer of this seed is empty; fill it or leave the row out")
    return (messages[0].content if len(messages) == 3 else None), messages[-2].content, messages[-1].content
