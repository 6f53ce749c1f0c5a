"""Texts as vectors without a model: TF-IDF of hashed word uni- and bigrams.

They see shared words and not meaning: paraphrases are far apart. In return they are the same on
every machine and for every language, and cost nothing. Diversity figures say which vectors they
are of.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stillhouse.synthesis.words import words

DIMENSIONS = 2048
NAME = "TF-IDF of hashed word 1- and 2-grams"

Matrix = NDArray[np.float64]


class TextVectors:
    """Vectors whose inverse document frequencies come from one collection of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Learn how many of ``texts`` have each feature; weight ln((1 + n) / (1 + n_f)) + 1."""
        frequency = np.zeros(DIMENSIONS)
        for text in texts:
            frequency[list(_features(text))] += 1
        self._weights = np.log((1 + len(texts)) / (1 + frequency)) + 1

    def __call__(self, texts: Sequence[str]) -> Matrix:
        """Return float64 [n, DIMENSIONS], each row of length 1; a text without words is a row of zeros."""
        rows = np.zeros((len(texts), DIMENSIONS))
        for row, text in zip(rows, texts, strict=True):
            for feature, count in _features(text).items():
                row[feature] = count
        rows *= self._weights
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norms > 0, norms, 1)


def _features(text: str) -> Counter[int]:
    tokens = words(text)
    grams = [*tokens, *(" ".join(pair) for pair in pairwise(tokens))]
    return Counter(zlib.crc32(gram.encode()) % DIMENSIONS for gram in grams)
