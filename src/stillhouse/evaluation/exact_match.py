"""Exact match of a generated text with a gold answer, after a documented normalisation.

1. Where a text carries GSM8K's marker ``####``, only the rest of the last such line counts.
2. A numeric gold (``1,200``, ``$5``, ``5.0``, ``40%``) is compared with the *last* number of the
   prediction as a number: thousands commas, ``$``, ``%`` and trailing zeros do not matter.
3. A gold of one letter A-E is a choice: the prediction may open with the letter (``B``, ``B.``,
   ``(B)``, ``B) because``) or state it (``The answer is B``). The opening counts first.
4. A gold of one letter in parentheses, ``(B)`` as in BBH, is compared with the last such letter of
   the prediction, or with the whole of a prediction that has none (``B``, ``b.``).
5. Anything else must be equal after trimming, case folding, collapsing white space and dropping
   one full stop at the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

_MARKER = "####"
# A minus is a sign only where no word or number stands before it: "10-5" ends in 5.
_NUMBER = re.compile(r"(?<![\w.,])(?P<sign>[-+]?)\$?(?P<digits>\d[\d,]*(?:\.\d+)?|\.\d+)%?")
_CHOICE = re.compile(r"[A-E]")
_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_OPENING_CHOICE = re.compile(r"\(?([A-E])(?:[.):]|\s*$|\s*\n)", re.IGNORECASE)
_STATED_CHOICE = re.compile(
    r"\b(?:answer|choice|option)(?:\s+is)?\s*:?\s*\(?([A-E])(?:[.):,]|\s*$|\s*\n)", re.IGNORECASE
)


@dataclass(frozen=True)
class DomainScore:
    """Share of ``n`` rows that match."""

    score: float
    n: int


@dataclass(frozen=True)
class ExactMatchReport:
    """Share of all ``n`` rows that match, and the same per domain."""

    score: float
    n: int
    by_domain: dict[str, DomainScore]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExactMatchReport:
        """Rebuild a report from its ``dataclasses.asdict`` form."""
        domains = {name: DomainScore(**values) for name, values in data["by_domain"].items()}
        return cls(data["score"], data["n"], domains)


def exact_match(prediction: str, answer: str) -> bool:
    """Whether ``prediction`` gives the gold ``answer``; the module's docstring has the rules."""
    prediction, answer = _after_marker(prediction), _after_marker(answer).strip()
    gold_number = _NUMBER.fullmatch(answer)
    if gold_number is not None:
        numbers = list(_NUMBER.finditer(prediction))
        return bool(numbers) and _value(numbers[-1]) == _value(gold_number)
    if _CHOICE.fullmatch(answer):
        return _choice(prediction) == answer
    bracketed = _BRACKETED.fullmatch(answer)
    if bracketed is not None:
        stated: list[str] = _BRACKETED.findall(prediction) or [_normalised(prediction)]
        return stated[-1].casefold() == bracketed[1].casefold()
    return _normalised(prediction) == _normalised(answer)


def exact_match_report(domains: Sequence[str], hits: Sequence[bool]) -> ExactMatchReport:
    """Count the rows that match, given column by column; there must be at least one."""
    by_domain: dict[str, list[bool]] = {}
    for domain, hit in zip(domains, hits, strict=True):
        by_domain.setdefault(domain, []).append(hit)
    scores = {name: DomainScore(sum(h) / len(h), len(h)) for name, h in sorted(by_domain.items())}
    return ExactMatchReport(sum(hits) / len(hits), len(hits), scores)


def _after_marker(text: str) -> str:
    """The rest of the line behind the last marker; the whole text without one."""
    if _MARKER not in text:
        return text
    lines = text.rpartition(_MARKER)[2].splitlines()
    return lines[0] if lines else ""


def _value(match: re.Match[str]) -> Decimal:
    return Decimal(match["sign"] + match["digits"].replace(",", ""))


def _choice(prediction: str) -> str | None:
    opening = _OPENING_CHOICE.match(prediction.lstrip())
    if opening is not None:
        return opening[1].upper()
    stated: list[str] = _STATED_CHOICE.findall(prediction)
    return stated[-1].upper() if stated else None


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
