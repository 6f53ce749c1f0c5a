"""How much the texts of a set repeat each other: BLEU of each with all others as references."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from stillhouse.synthesis.words import Words

ORDER = 4
UNMATCHED = 0.1
"""Matches of an order that has none (NLTK's method 1)."""


def self_bleu(texts: Sequence[Words]) -> float | None:
    """Return the mean BLEU (Papineni 2002) of each text with all others as its references; None under two texts.

    Zhu et al. 2018 (arXiv 1802.01886), n-grams of up to four words: 1 where every text stands in others, 0
    where none shares a word with another. A text has the orders that its length allows. The reference for
    the brevity penalty is the other text whose length is nearest.
    """
    texts = [text for text in texts if text]
    if len(texts) < 2:
        return None
    orders = [_Order(texts, n) for n in range(1, ORDER + 1)]
    lengths = sorted(map(len, texts))
    return sum(_bleu(number, text, orders, lengths) for number, text in enumerate(texts)) / len(texts)


def _bleu(number: int, text: Words, orders: Sequence[_Order], lengths: Sequence[int]) -> float:
    matches = [order.matches(number) for order in orders[: len(text)]]
    if not matches[0]:
        return 0.0
    logs = [math.log((found or UNMATCHED) / (len(text) - n)) for n, found in enumerate(matches)]
    brevity = min(0.0, 1 - _nearest_other(lengths, len(text)) / len(text))
    return math.exp(brevity + sum(logs) / len(logs))


class _Order:
    """The n-grams of every text, and how often each stands in the text that has most of it and in the next one.

    The largest count in any *other* text is the first of these, or the second for the text that has the
    first: no pair of texts is compared.
    """

    def __init__(self, texts: Sequence[Words], n: int) -> None:
        self._counts = [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts]
        self._largest: dict[Words, tuple[int, int, int]] = {}
        for number, own in enumerate(self._counts):
            for gram, count in own.items():
                first, holder, second = self._largest.get(gram, (0, -1, 0))
                newer = (count, number, first) if count > first else (first, holder, max(second, count))
                self._largest[gram] = newer

    def matches(self, number: int) -> int:
        """N-grams of a text that stand in another, each at most as often as there."""
        total = 0
        for gram, count in self._counts[number].items():
            first, holder, second = self._largest[gram]
            total += min(count, second if holder == number else first)
        return total


def _nearest_other(lengths: Sequence[int], length: int) -> int:
    """The length nearest to ``length`` among the others in a sorted list that holds it; the shorter of two."""
    place = bisect_left(lengths, length)
    others = [lengths[i] for i in (place - 1, place + 1) if 0 <= i < len(lengths)]
    return min(others, key=lambda other: (abs(other - length), other))
