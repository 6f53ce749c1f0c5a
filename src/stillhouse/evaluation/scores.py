"""A score with its uncertainty, and what each item contributed to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stillhouse.evaluation.bootstrap import Interval, bootstrap_interval


@dataclass(frozen=True)
class Score:
    """``score`` over ``n`` items (rows; documents for ``token_ece``), between 0 and 1.

    ``interval``: 95 % percentile bootstrap over the items, within this one model.
    """

    score: float
    n: int
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        return {"score": self.score, "n": self.n, "interval": list(self.interval)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Score:
        low, high = data["interval"]
        return cls(data["score"], data["n"], (low, high))


@dataclass(frozen=True)
class Part:
    """What one item adds to a score: ``value`` out of ``weight`` (1 but for counts of instructions)."""

    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class ChoiceScore:
    """One choice as the model sees it: log-probability of the whole answer, and of its content per UTF-8 byte."""

    text: str
    log_prob: float
    log_prob_per_byte: float


@dataclass
class Item:
    """One row under one model: what it was asked, what it said, and what that counts for."""

    id: str
    domain: str
    prompt: str
    gold: str | None
    generation: str | None = None
    choices: tuple[ChoiceScore, ...] = ()
    parts: dict[str, Part] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return one line of ``--samples-out``."""
        return {
            "id": self.id,
            "domain": self.domain,
            "prompt": self.prompt,
            "gold": self.gold,
            "generation": self.generation,
            "choices": [asdict(choice) for choice in self.choices],
            "scores": {name: part.value / part.weight for name, part in self.parts.items()},
            "weights": {name: part.weight for name, part in self.parts.items() if part.weight != 1},
        }


def score_of(parts: Sequence[Part]) -> Score:
    """Return sum of values over sum of weights, with its interval; there must be a part."""
    values, weights = [part.value for part in parts], [part.weight for part in parts]
    return Score(sum(values) / sum(weights), len(parts), bootstrap_interval(values, weights))


def item_scores(items: Sequence[Item]) -> dict[str, Score]:
    """Return every score that some item has a part in, in the order of first appearance."""
    names = dict.fromkeys(name for item in items for name in item.parts)
    return {name: score_of([item.parts[name] for item in items if name in item.parts]) for name in names}
