"""Words, their runs, and ROUGE-L between two texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stillhouse.errors import MissingDependencyError

Words = tuple[str, ...]

# Scripts without spaces give one word a character, so that runs of words mean something there too.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")


def words(text: str) -> Words:
    """Return the lower-cased words of a text, without punctuation; Chinese and Japanese by character."""
    return tuple(_WORD.findall(text.lower()))


def shingles(tokens: Words, length: int) -> frozenset[Words]:
    """Return the runs of ``length`` words; a shorter text is one run of all its words, an empty one has none."""
    if len(tokens) <= length:
        return frozenset({tokens} if tokens else ())
    return frozenset(tokens[i : i + length] for i in range(len(tokens) - length + 1))


def jaccard(a: frozenset[Words], b: frozenset[Words]) -> float:
    """Return |a & b| / |a | b|; 0 for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else 0.0


def rouge_l(candidate: Words, reference: Words) -> float:
    """Return ROUGE-L F1 (Lin 2004): 2PR / (P + R) with P = LCS / |candidate| and R = LCS / |reference|.

    No stemming, as Self-Instruct uses it (Wang 2022, arXiv 2212.10560). 0 where a text is empty.
    """
    total = len(candidate) + len(reference)
    return 2 * _common_subsequence(candidate, reference) / total if total else 0.0


def nearest_by_rouge_l(candidate: Words, pool: Sequence[Words], above: float) -> tuple[int, float] | None:
    """Return index and F1 of the first text in ``pool`` whose ROUGE-L with the candidate is greater than ``above``."""
    for index, reference in enumerate(pool):
        total = len(candidate) + len(reference)
        # 2 * LCS / total cannot exceed this: most pairs are settled by their lengths.
        if total and 2 * min(len(candidate), len(reference)) > above * total:
            score = rouge_l(candidate, reference)
            if score > above:
                return index, score
    return None


def distinct_n(texts: Sequence[Words], n: int, budget: int | None = None) -> float:
    """Return the share of n-grams that are unique, over the first ``budget`` words of the texts together.

    Longer sets repeat more, so sets are compared under one budget. 0 where there is no n-gram.
    """
    seen: set[Words] = set()
    total, left = 0, budget
    for text in texts:
        part = text if left is None else text[:left]
        if left is not None:
            left -= len(part)
        grams = [part[i : i + n] for i in range(len(part) - n + 1)]
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else 0.0


def _common_subsequence(a: Words, b: Words) -> int:
    try:
        from rapidfuzz.distance import LCSseq
    except ImportError as error:
        raise missing("ROUGE-L", "rapidfuzz") from error
    return LCSseq.similarity(a, b)


def missing(what: str, package: str) -> MissingDependencyError:
    """The error for a package of the extra that is not installed."""
    return MissingDependencyError(f"{what} needs {package}; run `pip install 'stillhouse[synthesis]'`")
