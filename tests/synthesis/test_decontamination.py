"""Runs of eight words that a training text shares with evaluation texts."""

from __future__ import annotations

import pytest

from stillhouse.synthesis.decontamination import Contamination, EvaluationIndex
from stillhouse.synthesis.words import words

ITEM = "a b c d e f g h i j k l"


def test_coverage_is_the_share_of_words_in_shared_runs() -> None:
    # The run a..h covers 8 of 12 words.
    index = EvaluationIndex([ITEM], threshold=0.5)
    assert index.coverage(words("x a b c d e f g h y")) == pytest.approx({0: 0.666667}, abs=1e-6)
    (found,) = index.contaminated("x a b c d e f g h y")
    assert found.index == 0
    assert found.coverage == pytest.approx(0.666667, abs=1e-6)
    assert EvaluationIndex([ITEM], threshold=0.7).contaminated("x a b c d e f g h y") == []


def test_overlapping_runs_count_each_word_once() -> None:
    index = EvaluationIndex([ITEM], threshold=0.5)
    assert index.coverage(words("a b c d e f g h i j")) == pytest.approx({0: 10 / 12})


def test_a_run_of_seven_is_no_run() -> None:
    assert EvaluationIndex([ITEM], threshold=0.5).contaminated("a b c d e f g x h i j k l") == []


def test_short_texts_can_only_be_equal() -> None:
    index = EvaluationIndex(["How do the cards work?", ITEM], threshold=0.5)
    assert index.contaminated("how do the CARDS work") == [Contamination(0, 1.0)]
    assert index.contaminated("how do the cards work today") == []
    assert len(index) == 2


def test_nothing_to_give_away() -> None:
    assert EvaluationIndex([], threshold=0.5).contaminated(ITEM) == []
    assert EvaluationIndex(["?"], threshold=0.5).contaminated("!") == []


def test_a_passage_of_a_long_text_is_thirteen_words() -> None:
    long_text = " ".join(f"w{i}" for i in range(200))
    passage = " ".join(f"w{i}" for i in range(50, 63))
    index = EvaluationIndex([long_text, ITEM], threshold=0.5)
    (found,) = index.contaminated(f"see {passage} there")
    assert (found.index, found.coverage) == (0, pytest.approx(13 / 200))
    assert index.contaminated(" ".join(passage.split()[:12])) == []
    # A shorter text is judged by its share, and what several texts begin with is an instruction.
    shorter = " ".join(long_text.split()[:199])
    assert EvaluationIndex([shorter], threshold=0.5).contaminated(passage) == []
    assert EvaluationIndex([long_text, f"{passage} and more"], threshold=0.5).contaminated(f"{passage} x") == [
        Contamination(1, 13 / 15)
    ]
