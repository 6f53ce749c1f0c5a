"""MinHash proposes, exact overlap and ROUGE-L decide."""

from __future__ import annotations

import pytest

from stillhouse.synthesis.near_duplicates import BANDS, PERMUTATIONS, ROWS, NearDuplicates

LONG = "please tell me how i can order a second card for my wife who lives abroad and when it will arrive"


@pytest.mark.parametrize(("similarity", "chance"), [(0.7, 0.613), (0.8, 0.947), (0.9, 1.000)])
def test_chance_of_meeting_in_a_band(similarity: float, chance: float) -> None:
    assert BANDS * ROWS == PERMUTATIONS
    assert 1 - (1 - similarity**ROWS) ** BANDS == pytest.approx(chance, abs=5e-4)


def test_a_near_duplicate_is_named_with_its_measure() -> None:
    pool = NearDuplicates(0.7)
    pool.add("seed a", "write a short poem about the sea")
    pool.add("seed b", LONG)
    # 3-gram overlap .667 is below the threshold, ROUGE-L .857 above it.
    assert pool.find("Write a short poem about the sky!") == "ROUGE-L 0.86 with seed a"
    # 20 words, 18 shingles, one word more at the end: 18 of 19.
    assert pool.find(LONG + " tomorrow") == "0.95 of its word 3-grams are those of seed b"
    assert pool.find("why was my transfer declined") is None


def test_texts_without_words_are_like_no_other() -> None:
    pool = NearDuplicates(0.7)
    pool.add("empty", " ... ")
    assert pool.find("?!") is None
    assert pool.find("hello there") is None


def test_word_order_alone_may_differ() -> None:
    pool = NearDuplicates(0.7)
    pool.add("a", "one two three four five six")
    assert pool.find("six five four three two one") is None
