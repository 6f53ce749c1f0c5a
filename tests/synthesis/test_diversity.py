"""Vendi score, cosines and distances, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stillhouse.synthesis.diversity import (
    MAX_TEXTS,
    describe_sets,
    distance_to_nearest,
    mean_pairwise_cosine,
    spectral_entropy_exponential,
    vendi_score,
)
from stillhouse.synthesis.vectors import TextVectors

TEXTS = ["where is my card", "my card is lost", "top up failed", "where is my card"]


def test_vendi_score_of_a_kernel() -> None:
    # Eigenvalues of [[1, .5], [.5, 1]] / 2 are .75 and .25: exp(.5623) = 1.754765.
    kernel = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert spectral_entropy_exponential(kernel / 2) == pytest.approx(1.754765, abs=1e-6)
    vectors = np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert vendi_score(vectors) == pytest.approx(1.754765, abs=1e-6)


def test_vendi_score_of_repeated_rows() -> None:
    # Eigenvalues 2/3 and 1/3.
    vectors = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert vendi_score(vectors) == pytest.approx(1.889882, abs=1e-6)
    # The smaller matrix X'X has the same eigenvalues.
    assert vendi_score(vectors[:, :2]) == pytest.approx(1.889882, abs=1e-6)
    assert vendi_score(vectors[:0]) == 0
    assert vendi_score(np.eye(5)) == pytest.approx(5)


def test_mean_pairwise_cosine_is_the_mean_over_pairs() -> None:
    vectors = TextVectors(TEXTS)(TEXTS)
    pairs = [float(vectors[i] @ vectors[j]) for i in range(4) for j in range(i)]
    assert mean_pairwise_cosine(vectors) == pytest.approx(sum(pairs) / 6)
    assert mean_pairwise_cosine(vectors[:1]) is None


def test_distance_to_the_nearest() -> None:
    vectors = np.array([[1.0, 0.0], [0.6, 0.8]])
    assert distance_to_nearest(vectors, np.array([[0.0, 1.0], [-1.0, 0.0]])) == pytest.approx([1.0, 0.2])
    with pytest.raises(ValueError, match="nothing to be near to"):
        distance_to_nearest(vectors, vectors[:0])


def test_vectors_are_unit_rows_of_shared_words() -> None:
    rows = TextVectors(TEXTS)([*TEXTS, "?"])
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1, 1, 0])
    assert rows[0] @ rows[3] == pytest.approx(1)
    assert rows[0] @ rows[2] == 0
    assert 0 < rows[0] @ rows[1] < 1


def test_sets_are_compared_under_one_budget_of_words() -> None:
    found = describe_sets(["a b", "c d"], ["x x x x x x x x", "y y"], seed=0)
    assert found["word_budget"] == 4
    assert found["sets"]["human"]["distinct_1"] == 1.0
    assert found["sets"]["synthetic"]["distinct_1"] == 0.25
    assert found["sets"]["synthetic"]["texts"] == 2
    assert found["distance_to_nearest_seed"] == [1.0, 1.0]
    assert found["distance_between_seeds"] == [1.0, 1.0]


def test_an_empty_set_has_no_distances() -> None:
    found = describe_sets(["a b"], [], seed=0)
    assert found["distance_to_nearest_seed"] == found["distance_between_seeds"] == []
    assert found["sets"]["synthetic"]["vendi"] == 0


def test_large_sets_are_sampled() -> None:
    texts = [f"w{i}" for i in range(MAX_TEXTS + 5)]
    found = describe_sets(["a"], texts[:1], seed=0)["sets"]["synthetic"]["texts"]
    assert found == 1
    from stillhouse.synthesis.diversity import _sample

    chosen = _sample(texts, seed=0)
    assert len(set(chosen)) == MAX_TEXTS
    assert chosen == _sample(texts, seed=0)
