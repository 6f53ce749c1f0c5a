"""How varied a set of texts is, and how far from the human ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse.randomness import numpy_generator
from stillhouse.synthesis.self_bleu import self_bleu
from stillhouse.synthesis.vectors import NAME, Matrix, TextVectors
from stillhouse.synthesis.words import distinct_n, words

MAX_TEXTS = 2000
"""Larger sets are measured on a sample: the Vendi score needs eigenvalues of a matrix of this size."""
MAX_SELF_BLEU = 1000
"""Texts for self-BLEU, which grows with the set: both sets are measured on as many, and on at most so many."""


def vendi_score(vectors: Matrix) -> float:
    """Return exp(-sum of l ln l) over the eigenvalues l of K / n, with K the cosines of unit rows [n, D].

    Friedman and Dieng 2022 (arXiv 2210.02410): the effective number of different texts, from 1 to
    n. X'X / n has the same eigenvalues and is smaller where D < n. 0 for no rows.
    """
    n, dimensions = vectors.shape
    if n == 0:
        return 0.0
    gram = vectors.T @ vectors if dimensions < n else vectors @ vectors.T
    return spectral_entropy_exponential(gram / n)


def spectral_entropy_exponential(matrix: Matrix) -> float:
    """Return exp(-sum of l ln l) over the eigenvalues of a symmetric matrix of trace 1; those below 1e-12 are 0."""
    values = np.linalg.eigvalsh(matrix)
    values = values[values > 1e-12]
    return float(np.exp(-np.sum(values * np.log(values))))


def mean_pairwise_cosine(vectors: Matrix) -> float | None:
    """Return the mean cosine over pairs of different rows, unit vectors [n, D]; None under two rows.

    The squared length of the sum holds every ordered pair and each row with itself.
    """
    n = len(vectors)
    if n < 2:
        return None
    total = float(np.sum(vectors.sum(axis=0) ** 2)) - float(np.sum(vectors**2))
    return total / (n * (n - 1))


def distance_to_nearest(vectors: Matrix, others: Matrix) -> Matrix:
    """Return 1 - cosine with the nearest row of ``others`` [m, D] for each row of ``vectors`` [n, D]: [n]."""
    if not len(others):
        raise ValueError("there is nothing to be near to: others has no rows")
    distances: Matrix = np.clip(1 - (vectors @ others.T).max(axis=1), 0, None)
    return distances


def describe_sets(human: Sequence[str], synthetic: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return both sets' measures as JSON: under equal word budgets, on at most MAX_TEXTS texts each."""
    human, synthetic = _sample(human, seed), _sample(synthetic, seed)
    vectors = TextVectors([*human, *synthetic])
    of_human, of_synthetic = vectors(human), vectors(synthetic)
    tokens = {"human": [words(t) for t in human], "synthetic": [words(t) for t in synthetic]}
    sizes = [sum(map(len, texts)) for texts in tokens.values() if texts]
    budget = min(sizes) if sizes else 0
    compared = min([MAX_SELF_BLEU, *(len(texts) for texts in tokens.values() if texts)])
    matrices = {"human": of_human, "synthetic": of_synthetic}
    sets = {
        name: {
            "texts": len(texts),
            "words": sum(map(len, texts)),
            **{f"distinct_{n}": distinct_n(texts, n, budget) for n in (1, 2, 3)},
            "self_bleu": self_bleu(texts[:compared]),
            "vendi": vendi_score(matrices[name]),
            "mean_pairwise_cosine": mean_pairwise_cosine(matrices[name]),
        }
        for name, texts in tokens.items()
    }
    return {
        "vectors": NAME,
        "word_budget": budget,
        "sets": sets,
        "distance_to_nearest_seed": _rounded(distance_to_nearest(of_synthetic, of_human)) if synthetic else [],
        "distance_between_seeds": _rounded(_to_nearest_other(of_human)) if len(human) > 1 else [],
    }


def _to_nearest_other(vectors: Matrix) -> Matrix:
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    distances: Matrix = np.clip(1 - cosines.max(axis=1), 0, None)
    return distances


def _sample(texts: Sequence[str], seed: int) -> list[str]:
    if len(texts) <= MAX_TEXTS:
        return list(texts)
    chosen = numpy_generator(seed, "synthesis-diversity").choice(len(texts), MAX_TEXTS, replace=False)
    return [texts[i] for i in sorted(chosen)]


def _rounded(values: Matrix) -> list[float]:
    return [round(float(v), 4) for v in values]
