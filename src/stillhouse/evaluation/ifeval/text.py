"""Words, sentences and paragraphs of an answer, found by rules and without any download.

Sentences end with ``.``, ``!`` or ``?`` (or ``。``, ``！``, ``？``, ``।``) and white space, as with
NLTK's Punkt that IFEval's authors used; a line break alone ends none. A full stop does not end one
behind a known abbreviation, an initial, or a number that opens a line (``1. First``).
"""

from __future__ import annotations

import re

ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "sr",
        "jr",
        "st",
        "mt",
        "rev",
        "hon",
        "gen",
        "col",
        "capt",
        "lt",
        "sgt",
        "vs",
        "etc",
        "approx",
        "dept",
        "est",
        "fig",
        "no",
        "vol",
        "ed",
        "inc",
        "ltd",
        "co",
        "corp",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "e.g",
        "i.e",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
        "u.n",
        "ph.d",
        "cf",
        "al",
    ]
)
"""Lower-cased, without their last full stop."""
_NO_END = ABBREVIATIONS - {"etc", "al", "a.m", "p.m", "inc", "ltd", "co", "corp", "u.s", "u.k", "u.n", "ph.d"}
"""Those that a sentence does not end with; the others end one where a capital letter follows."""
_WORD = re.compile(r"\w+")
_CASED_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_TERMINATOR = re.compile(r"[.!?]+[\"'”’)\]*_]*(?=\s)|[。！？।]+[」』”’）]*")


def words(text: str) -> list[str]:
    """Return runs of letters, digits and underscores, which is how IFEval counts words."""
    return _WORD.findall(text)


def cased_words(text: str) -> list[str]:
    """Return words as people write them (``don't``, ``well-known``), for questions about their letters."""
    return _CASED_WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Return the sentences, stripped; a text without a terminator is one."""
    found, start = [], 0
    for terminator in _TERMINATOR.finditer(text):
        if _ends_sentence(text, start, terminator):
            found.append(text[start : terminator.end()])
            start = terminator.end()
    found.append(text[start:])
    return [sentence.strip() for sentence in found if re.search(r"\w", sentence)]


def _ends_sentence(text: str, start: int, terminator: re.Match[str]) -> bool:
    if terminator.group()[0] != "." or terminator.group().startswith(".."):
        return True
    before = text[start : terminator.start()]
    last = re.search(r"\S+$", before)
    word = last.group().lstrip("\"'“‘([*_").lower() if last else ""
    if word.isdigit():
        line = before.rpartition("\n")[2].strip()
        return line != word  # the number of a list entry has its line to itself so far
    if re.fullmatch(r"[a-z]", word) and word != "i":
        return False
    if word in _NO_END:
        return False
    follows = re.match(r"\s*[\"'“‘(\[*_]*(\w)", text[terminator.end() :])
    return word not in ABBREVIATIONS or follows is None or follows.group(1).isupper()


def divided_paragraphs(text: str) -> list[str] | None:
    """Return the paragraphs between lines of ``***``; None where one in the middle is empty."""
    return split_on(text, r"\s?\*\*\*\s?")


def split_on(text: str, divider: str) -> list[str] | None:
    """Return the parts between the matches of ``divider``, empty ones left out at the ends; None for one inside."""
    parts = [part.strip() for part in re.split(divider, text)]
    if not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return None if any(not part for part in parts) else parts


def spaced_paragraphs(text: str) -> list[str]:
    """Return the paragraphs between empty lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
