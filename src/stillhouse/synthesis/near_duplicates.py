"""Find texts that say nearly the same as one that is there already."""

from __future__ import annotations

from typing import Any

from stillhouse.synthesis.words import Words, jaccard, missing, nearest_by_rouge_l, shingles, words

SHINGLE_WORDS = 3
PERMUTATIONS, BANDS, ROWS = 128, 16, 8
"""Pairs meet in a band with probability 1 - (1 - J^8)^16, about one half at J = (1/16)^(1/8) = 0.707."""


class NearDuplicates:
    """A growing pool of texts, asked before each is added.

    MinHash with locality-sensitive hashing proposes texts that share most word 3-grams, and their
    exact Jaccard similarity decides; what passes is compared with every text by ROUGE-L (Wang
    2022, arXiv 2212.10560), where the lengths of a pair settle most comparisons.
    """

    def __init__(self, threshold: float) -> None:
        """``threshold`` in (0, 1]: both similarities must be at most this.

        Raises MissingDependencyError without datasketch.
        """
        try:
            from datasketch import MinHashLSH
        except ImportError as error:
            raise missing("finding near duplicates", "datasketch") from error
        self._threshold = threshold
        self._index: Any = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS))
        self._names: list[str] = []
        self._words: list[Words] = []
        self._shingles: list[frozenset[Words]] = []

    def add(self, name: str, text: str) -> None:
        """Put a text into the pool; an empty one is like no other and stays out."""
        tokens = words(text)
        if not tokens:
            return
        self._index.insert(len(self._names), _minhash(shingles(tokens, SHINGLE_WORDS)))
        self._names.append(name)
        self._words.append(tokens)
        self._shingles.append(shingles(tokens, SHINGLE_WORDS))

    def find(self, text: str) -> str | None:
        """Return which text is too much like this one and how much, for people; None where none is."""
        tokens = words(text)
        if not tokens:
            return None
        grams = shingles(tokens, SHINGLE_WORDS)
        for number in sorted(self._index.query(_minhash(grams))):
            overlap = jaccard(grams, self._shingles[number])
            if overlap > self._threshold:
                return f"{overlap:.2f} of its word 3-grams are those of {self._names[number]}"
        nearest = nearest_by_rouge_l(tokens, self._words, self._threshold)
        return None if nearest is None else f"ROUGE-L {nearest[1]:.2f} with {self._names[nearest[0]]}"


def _minhash(grams: frozenset[Words]) -> Any:
    from datasketch import MinHash

    signature = MinHash(num_perm=PERMUTATIONS)
    signature.update_batch([" ".join(gram).encode() for gram in grams])
    return signature
