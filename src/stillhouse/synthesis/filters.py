"""What an input must be before it is worth an answer, and an answer before it is worth a row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from stillhouse.data.rows import Row
from stillhouse.recipe import SynthesisFilters
from stillhouse.rollout.generator import Completion
from stillhouse.synthesis.candidates import Rejection
from stillhouse.synthesis.decontamination import EvaluationIndex
from stillhouse.synthesis.formats import Format, holds_special
from stillhouse.synthesis.near_duplicates import NearDuplicates
from stillhouse.synthesis.seeds import SeedDomain
from stillhouse.synthesis.words import missing, words


class InputFilter:
    """Judges inputs against the seeds, the evaluation, and the inputs that passed before."""

    def __init__(
        self,
        config: SynthesisFilters,
        domains: Collection[SeedDomain],
        input_format: Format | None,
        evaluation: EvaluationIndex,
        evaluation_rows: Sequence[Row],
        special: Sequence[re.Pattern[str]] = (),
    ) -> None:
        """Raises MissingDependencyError where a filter's package is not installed."""
        self._config, self._format, self._special = config, input_format, special
        self._evaluation, self._evaluation_rows = evaluation, evaluation_rows
        self._near = NearDuplicates(config.rouge_l)
        self._known: dict[str, str] = {}
        self._one_line = {d.name for d in domains if all("\n" not in s.text.strip() for s in d.seeds)}
        self._lengths = {d.name: length_range((s.text for s in d.seeds), config.length_factor) for d in domains}
        for domain in domains:
            for seed in domain.seeds:
                self.add(f"seed {seed.id}", seed.text)

    def add(self, name: str, text: str) -> None:
        """Make an input known, so that later ones must differ from it."""
        self._known.setdefault(_folded(text), name)
        self._near.add(name, text)

    def judge(self, text: str, domain: str, *, finished: bool) -> Rejection | None:
        """Return why an input is not worth an answer, or None. Cheap questions are asked first."""
        if not finished:
            return Rejection("unfinished_input")
        if not text:
            return Rejection("empty_input")
        if problem := holds_special(text, self._special):
            return Rejection("special_token", problem)
        if domain in self._one_line and "\n" in text:
            return Rejection("input_format", "several lines; the seeds have one")
        if self._format is not None and (problem := self._format.problem(text)):
            return Rejection("input_format", problem)
        if problem := self._lengths[domain].problem(text):
            return Rejection("input_length", problem)
        if self._config.languages and (found := language(text)) not in self._config.languages:
            return Rejection("language", found)
        if known := self._known.get(_folded(text)):
            return Rejection("duplicate", known)
        if near := self._near.find(text):
            return Rejection("near_duplicate", near)
        if given_away := self._evaluation.contaminated(text):
            return Rejection("contamination", self._evaluation_rows[given_away[0].index].where)
        return None


@dataclass(frozen=True)
class LengthRange:
    """Bounds on words; None where lengths do not matter."""

    bounds: tuple[float, float] | None

    def problem(self, text: str) -> str | None:
        """Return what is wrong with the length of ``text``, or None."""
        if self.bounds is None:
            return None
        count, (low, high) = len(words(text)), self.bounds
        return None if low <= count <= high else f"{count} words; {low:g} to {high:g} are expected"


def length_range(texts: Iterable[str], factor: float | None) -> LengthRange:
    """Return the range from the shortest text's words divided by ``factor`` to the longest's times it."""
    if factor is None:
        return LengthRange(None)
    counts = [len(words(text)) for text in texts]
    return LengthRange((min(counts) / factor, max(counts) * factor))


def language(text: str) -> str:
    """Return the ISO 639-1 code of the likeliest language; raises MissingDependencyError without py3langid."""
    try:
        import py3langid
    except ImportError as error:
        raise missing("synthesis.filters.languages", "py3langid") from error
    code: str = py3langid.classify(text)[0]
    return code


def choose_answer(
    samples: Sequence[Completion],
    answer_format: Format,
    lengths: LengthRange,
    min_agreement: float,
    accepts: Callable[[str], bool] | None = None,
) -> tuple[str | None, float | None, Rejection | None]:
    """Return (answer, share of samples that gave it, why it is not good enough or None).

    Only samples that have the format vote, and of them only those that the verifier ``accepts``. Of
    equally frequent answers the first wins, and of samples that agree the first is the answer. The
    share is of all samples; ``min_agreement`` is held against it, or with a verifier against the
    share of accepted samples: what is known to be wrong is no dissent.
    """
    finished = [s.text.strip() for s in samples if s.finished]
    if not finished:
        return None, None, Rejection("unfinished_answer")
    valid = [text for text in finished if text and answer_format.problem(text) is None]
    if not valid:
        problem = answer_format.problem(finished[0]) if finished[0] else None
        return finished[0], None, Rejection("answer_format", problem) if problem else Rejection("empty_answer")
    voters = len(samples)
    if accepts is not None:
        accepted = {text for text in dict.fromkeys(valid) if accepts(text)}
        if not accepted:
            several = f"all {len(valid)} samples with the format are refused" if len(samples) > 1 else ""
            return valid[0], None, Rejection("verifier", several)
        valid = [text for text in valid if text in accepted]
        voters = len(valid)
    votes = Counter(answer_format.vote(text) for text in valid)
    winner, count = votes.most_common(1)[0]
    answer = next(text for text in valid if answer_format.vote(text) == winner)
    agreement = count / len(samples)
    if count / voters < min_agreement:
        kind = "samples" if accepts is None else "accepted samples"
        return answer, agreement, Rejection("no_agreement", f"{count} of {voters} {kind} agree")
    problem = lengths.problem(answer)
    return answer, agreement, Rejection("answer_length", problem) if problem else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
