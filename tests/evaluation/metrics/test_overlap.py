"""ROUGE-L and chrF against numbers by hand."""

from __future__ import annotations

import sys

import pytest

from stillhouse.errors import MissingDependencyError
from stillhouse.evaluation.metrics import overlap
from stillhouse.evaluation.metrics.overlap import chrf, rouge_l


def test_rouge_l_by_hand() -> None:
    # "the cat sat down" in "the cat sat on the mat": LCS 3, precision 3/4, recall 3/6, F = 2 * .75 * .5 / 1.25 = .6.
    assert rouge_l("the cat sat down", ["the cat sat on the mat"]) == pytest.approx(0.6)
    assert rouge_l("The cat, sat DOWN!", ["something else", "the cat sat on the mat"]) == pytest.approx(0.6)
    # 6 of 7 words on each side.
    sky, sea = ("write a short poem about the " + word for word in ("sky", "sea"))
    assert rouge_l(sky, [sea]) == pytest.approx(0.857143, abs=1e-6)
    assert rouge_l("", ["a"]) == 0


def test_chrf_by_hand() -> None:
    # "ab" against "abc": 1-grams 2 of 2 and 2 of 3, 2-grams 1 of 1 and 1 of 2; longer ones are in neither or one side
    # only. Averages over the two orders that both have: P = 1, R = (2/3 + 1/2) / 2 = .58333; the reference's 3-gram
    # has no counterpart, so the order does not count. F2 = 5 P R / (4 P + R) = 2.91667 / 4.58333 = .63636.
    assert chrf("ab", ["abc"]) == pytest.approx(0.63636, abs=1e-4)
    assert chrf("größer 漢字", ["größer 漢字"]) == pytest.approx(1)
    assert chrf("ab", ["xyz", "abc"]) == pytest.approx(0.63636, abs=1e-4)
    assert chrf("", ["abc"]) == 0


@pytest.mark.parametrize(
    ("package", "score"), [("rouge_score.rouge_scorer", rouge_l), ("sacrebleu.metrics.chrf", chrf)]
)
def test_a_missing_package_is_named(package: str, score: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    overlap._rouge_scorer.cache_clear()
    overlap._chrf_scorer.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"pip install 'stillhouse\[metrics\]'"):
        score("a", ["a"])  # type: ignore[operator]
    monkeypatch.undo()
    assert score("a", ["a"]) == 1  # type: ignore[operator]
