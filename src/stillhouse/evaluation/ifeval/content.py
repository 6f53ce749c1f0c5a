"""Instructions about what an answer says: words, letters, language, case, length."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any, Literal

from stillhouse.errors import MissingDependencyError
from stillhouse.evaluation.ifeval.text import cased_words, divided_paragraphs, sentences, spaced_paragraphs, words

Relation = Literal["less than", "at least"]


def compare(count: int, relation: Relation, bound: int) -> bool:
    """``less than`` is strict, ``at least`` is not."""
    return count < bound if relation == "less than" else count >= bound


def keywords_exist(answer: str, keywords: tuple[str, ...]) -> bool:
    """Every keyword occurs, in any case and also within a word."""
    return all(keyword.casefold() in answer.casefold() for keyword in keywords)


def keyword_frequency(answer: str, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword occurs so often, in any case and also within words; occurrences do not overlap."""
    return compare(answer.casefold().count(keyword.strip().casefold()), relation, frequency)


def no_forbidden_words(answer: str, forbidden_words: tuple[str, ...]) -> bool:
    """None of the words stands there as a word of its own, in any case."""
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The character occurs so often, in either case."""
    return compare(answer.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(answer: str, language: str) -> bool:
    """The likeliest language is this one (ISO 639-1); a text without any language counts as following.

    Raises MissingDependencyError without langdetect.
    """
    found = detect_language(answer)
    return found is None or found == language


def capital_word_frequency(answer: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """So many words are in capitals throughout; ``A`` and ``I`` are such words."""
    return compare(sum(word.isupper() for word in cased_words(answer)), capital_relation, capital_frequency)


def english_capital(answer: str) -> bool:
    """All letters are capitals, and Latin ones."""
    return answer.isupper() and _is_latin(answer)


def english_lowercase(answer: str) -> bool:
    """No letter is a capital, and all are Latin ones."""
    return answer.islower() and _is_latin(answer)


def number_of_words(answer: str, num_words: int, relation: Relation) -> bool:
    """The answer has so many words."""
    return compare(len(words(answer)), relation, num_words)


def number_of_sentences(answer: str, num_sentences: int, relation: Relation) -> bool:
    """The answer has so many sentences."""
    return compare(len(sentences(answer)), relation, num_sentences)


def number_of_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs stand between ``***``, none of them empty."""
    found = divided_paragraphs(answer)
    return found is not None and len(found) == num_paragraphs


def nth_paragraph_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs stand between empty lines, and the n-th opens with this word, in any case."""
    found = spaced_paragraphs(answer)
    if len(found) != num_paragraphs or nth_paragraph > len(found):
        return False
    opening = re.match(r"\W*([^\s.,?!'\"]*)", found[nth_paragraph - 1])
    return opening is not None and opening.group(1).casefold() == first_word.casefold()


def no_comma(answer: str) -> bool:
    """There is no comma."""
    return "," not in answer


def detect_language(text: str) -> str | None:
    """Return the code of the likeliest language, None for a text without letters; the same at every call."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = language_profiles().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


@cache
def language_profiles() -> Any:
    """Load the language profiles that come with langdetect, its draws seeded.

    Raises MissingDependencyError without langdetect.
    """
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the instruction language:response_language needs langdetect; run `pip install 'stillhouse[metrics]'`"
        ) from error
    factory = DetectorFactory()
    factory.set_seed(0)
    factory.load_profile(PROFILES_DIRECTORY)
    return factory


def _is_latin(text: str) -> bool:
    return all(unicodedata.name(c, "").startswith("LATIN") for c in text if c.isupper() or c.islower())
