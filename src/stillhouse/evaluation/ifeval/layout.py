"""Instructions about how an answer is laid out: lists, sections, marks, beginnings and ends."""

from __future__ import annotations

import json
import re

from stillhouse.evaluation.ifeval.text import split_on

CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
_BULLET = re.compile(r"^\s*(?:\*[^*\n]|-)", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*")
_TITLE = re.compile(r"<<([^\n]+?)>>")
_FENCE = re.compile(r"\A```(?:json)?\s*\n?|\n?```\Z", re.IGNORECASE)


def number_placeholders(answer: str, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets."""
    return len(_PLACEHOLDER.findall(answer)) >= num_placeholders


def postscript(answer: str, postscript_marker: str) -> bool:
    """A postscript opens with the marker, in any case; P.S. and P.P.S may have spaces between their letters."""
    letters = re.sub(r"[\s.]", "", postscript_marker)
    if letters.lower() in ("ps", "pps"):
        pattern = r"\.\s?".join(letters) + (r"\." if len(letters) == 2 else "")
    else:
        pattern = re.escape(postscript_marker)
    return re.search(pattern, answer, re.IGNORECASE) is not None


def constrained_response(answer: str) -> bool:
    """One of the three permitted answers stands in the text."""
    return any(option in answer for option in CONSTRAINED_ANSWERS)


def json_format(answer: str) -> bool:
    """The whole answer is JSON, perhaps in a Markdown fence."""
    try:
        json.loads(_FENCE.sub("", answer.strip()).strip())
    except (ValueError, RecursionError):
        return False
    return True


def multiple_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each opened by the word and a number (``Section 2``)."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", answer)) >= num_sections


def number_bullets(answer: str, num_bullets: int) -> bool:
    """Exactly so many lines open with ``*`` or ``-``; a line that opens with ``**`` is bold and no entry."""
    return len(_BULLET.findall(answer)) == num_bullets


def number_highlights(answer: str, num_highlights: int) -> bool:
    """At least so many stretches of a line stand in ``*`` or ``**``, white space apart not empty."""
    return sum(bool(match.strip("* \t")) for match in _HIGHLIGHT.findall(answer)) >= num_highlights


def title(answer: str) -> bool:
    """A title that is not empty stands in ``<<`` and ``>>``."""
    return any(found.strip("<> \t") for found in _TITLE.findall(answer))


def two_responses(answer: str) -> bool:
    """Two different responses are parted by six asterisks."""
    parts = split_on(answer, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def repeats_prompt(answer: str, prompt_to_repeat: str) -> bool:
    """The answer opens with the request, word for word, in any case."""
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(answer: str, end_phrase: str) -> bool:
    """The answer ends with the phrase, in any case and perhaps in quotation marks; nothing follows."""
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().strip('"').lower())


def quotation(answer: str) -> bool:
    """The whole answer stands in double quotation marks."""
    stripped = answer.strip()
    return len(stripped) > 1 and stripped[0] == stripped[-1] == '"'
