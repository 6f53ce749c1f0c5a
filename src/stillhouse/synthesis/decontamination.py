"""Which evaluation rows a training text would give away (as Tulu 3: Lambert 2024, arXiv 2411.15124)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.synthesis.words import Words, words

RUN = 8
"""Words of the shared runs that count."""
LONG_RUN, LONG_TEXT = 13, 200
"""One shared run of 13 words gives away a passage of a text of 200 words or more, of which it is too small a share."""


@dataclass(frozen=True)
class Contamination:
    """An evaluation text that a training text gives away, and the share of its words that stand in shared runs."""

    index: int
    coverage: float


class EvaluationIndex:
    """The prompts of evaluation rows, by their runs of eight words.

    A word of an evaluation text is matched when it lies in a run of eight that the training text
    has too; the text is contaminated when more than ``threshold`` of its words are matched by one
    training text, or when the two are equal but for case, punctuation and white space. Texts
    under eight words can only be equal. A text of 200 words or more is also contaminated by one
    run of thirteen, unless other evaluation texts have that run too: it is then an instruction.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self._threshold = threshold
        self._lengths: list[int] = []
        self._equal: defaultdict[Words, list[int]] = defaultdict(list)
        self._runs: defaultdict[Words, list[tuple[int, int]]] = defaultdict(list)
        long_runs: defaultdict[Words, set[int]] = defaultdict(set)
        for index, text in enumerate(texts):
            tokens = words(text)
            self._lengths.append(len(tokens))
            if tokens:
                self._equal[tokens].append(index)
            for start in range(len(tokens) - RUN + 1):
                self._runs[tokens[start : start + RUN]].append((index, start))
            for start in range(len(tokens) - LONG_RUN + 1):
                long_runs[tokens[start : start + LONG_RUN]].add(index)
        owners = {run: next(iter(indices)) for run, indices in long_runs.items() if len(indices) == 1}
        self._long_runs = {run: index for run, index in owners.items() if self._lengths[index] >= LONG_TEXT}

    def __len__(self) -> int:
        return len(self._lengths)

    def contaminated(self, text: str) -> list[Contamination]:
        """Return the evaluation texts that ``text`` gives away, in their order."""
        tokens = words(text)
        found = dict.fromkeys(self._equal.get(tokens, ()), 1.0)
        passages = self._passages(tokens)
        for index, coverage in self.coverage(tokens).items():
            if coverage > self._threshold or index in passages:
                found.setdefault(index, coverage)
        return [Contamination(index, found[index]) for index in sorted(found)]

    def _passages(self, tokens: Words) -> set[int]:
        """Return the long evaluation texts that share a run of thirteen words with ``tokens``."""
        runs = (tokens[i : i + LONG_RUN] for i in range(len(tokens) - LONG_RUN + 1))
        return {self._long_runs[run] for run in runs if run in self._long_runs}

    def coverage(self, tokens: Words) -> dict[int, float]:
        """Return the matched share of every evaluation text that shares a run of eight with ``tokens``."""
        covered: defaultdict[int, set[int]] = defaultdict(set)
        for run in {tokens[i : i + RUN] for i in range(len(tokens) - RUN + 1)}:
            for index, start in self._runs.get(run, ()):
                covered[index].update(range(start, start + RUN))
        return {index: len(places) / self._lengths[index] for index, places in covered.items()}
