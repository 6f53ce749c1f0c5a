"""Self-BLEU, by hand and as sacrebleu computes BLEU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.synthesis.self_bleu import self_bleu
from stillhouse.synthesis.words import words

SEA = words("write a short poem about the sea")
tokens = st.lists(st.sampled_from("abcd"), max_size=12).map(tuple)


def test_self_bleu_by_hand() -> None:
    # "a b c" against "a b d": 2/3 of the words, 1/2 of the pairs, no triple (0.1 / 1); the same the other way.
    assert self_bleu([("a", "b", "c"), ("a", "b", "d")]) == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))
    assert self_bleu([SEA, SEA]) == pytest.approx(1)
    assert self_bleu([SEA]) is None
    assert self_bleu([SEA, ()]) is None


@given(st.lists(tokens.filter(bool), min_size=2, max_size=6))
def test_self_bleu_is_sacrebleu_with_all_others_as_references(texts: list[tuple[str, ...]]) -> None:
    bleu = pytest.importorskip("sacrebleu").BLEU(
        smooth_method="floor", smooth_value=0.1, effective_order=True, tokenize="none", lowercase=False
    )
    plain = [" ".join(text) for text in texts]
    scores = [bleu.sentence_score(plain[i], plain[:i] + plain[i + 1 :]).score / 100 for i in range(len(plain))]
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(scores))
