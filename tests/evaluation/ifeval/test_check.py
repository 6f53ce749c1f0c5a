"""Every instruction, followed and not; strict and loose; what arguments are refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.checkable import Instruction, parse_checks
from stillhouse.errors import DataError, MissingDependencyError
from stillhouse.evaluation.ifeval import content
from stillhouse.evaluation.ifeval.check import CHECKERS, check_arguments, follows, instruction_parts, loose_variants
from stillhouse.evaluation.scores import Part

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THIS is VERY loud", "I said A", "DON'T, E-MAIL"],
        ["THIS is loud", "this is 42 and _"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["ONE word", "none"],
        ["ONE MORE word"],
    ),
    ("change_case:english_capital", {}, ["ALL OF IT, 1!"], ["All of it", "123", "ПРИВЕТ"]),
    ("change_case:english_lowercase", {}, ["all of it, 1!"], ["All of it", "123", "привет"]),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem. "},
        ["write a poem.\nRoses", "  Write a poem."],
        ["Sure! Write a poem.", "Write a"],
    ),
    (
        "combination:two_responses",
        {},
        ["one ****** two", "one\n******\ntwo\n******\n"],
        ["one", "one ****** one", "one ****** two ****** three", "one ****** ****** two"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] in [city] [now]"],
        ["[name]", "(a) (b)"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. more", "bye p. s. more"],
        ["Bye PS more", "Bye"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye\nP.P.S more", "p. p. s. x"], ["P.S. x"]),
    ("detectable_content:postscript", {"postscript_marker": "Note+"}, ["bye note+ more"], ["bye notee"]),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. Really."],
        ["My answer is Yes", "Yes."],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1, 2]}\n```', "```\n[]\n```", "3"],
        ["{a: 1}", 'Here: {"a": 1}', '{"a": 1'],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 x Section 2 y Section 3"],
        ["Section 1\na", "section 1 section 2", "Section one, Section two"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b\ntext", "* a\n- b"],
        ["* a", "* a\n* b\n* c", "** a **\n** b **"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and *b* and **c**"],
        ["*a*", "** ** and * *", "*a\nb* c"],
    ),
    ("detectable_format:title", {}, ["<<Joy>>\ntext", "a << b c >>"], ["<Joy>", "<<>>", "<< >>", "<<a\nb>>"]),
    ("keywords:existence", {"keywords": ("cat", "Dog")}, ["Cats and dogs"], ["Cats"]),
    ("keywords:forbidden_words", {"forbidden_words": ("cat", "c++")}, ["category"], ["A CAT.", "a cat"]),
    (
        "keywords:frequency",
        {"keyword": " cat", "frequency": 2, "relation": "at least"},
        ["cat, Cats", "cat cat cat"],
        ["cat"],
    ),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, ["cat", "x"], ["cat cat"]),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        ["Qq", "q q"],
        ["q"],
    ),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, ["no"], ["yes!"]),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter.", "12345"],
        ["This is quite an ordinary English sentence about the weather."],
    ),
    (
        "language:response_language",
        {"language": "hi"},
        ["यह मौसम के बारे में एक साधारण वाक्य है।"],
        ["Ein Satz auf Deutsch."],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "president"},
        ["One.\n\nPresident, he said.", 'One.\n\n"president" it is'],
        ["President.\n\nOne.", "One.\n\nPresidential.", "President", "a\n\npresident\n\nb"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a\n\nb", "a *** *** b", "a *** b *** c"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two.", "One! Two? Three."],
        ["One.", "Dr. No"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One."], ["One. Two."]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c", "a b c d"], ["a b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b"], ["a b c"]),
    ("punctuation:no_comma", {}, ["no such thing"], ["yes, one"]),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ["Text. that is all.", 'Text. "That is all."', "Text.\nThat is all.\n"],
        ["That is all. Or not", "That is all"],
    ),
    ("startend:quotation", {}, ['"All of it"', '\n "x" '], ['"', '"a', "'a'"]),
]


def instruction(name: str, arguments: dict[str, Any]) -> Instruction:
    return Instruction(name, tuple(sorted(arguments.items())))


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_followed_and_not(name: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    asked = instruction(name, arguments)
    check_arguments([asked], "rows.jsonl:1")
    for answer in good:
        assert follows(answer, asked), answer
    for answer in bad:
        assert not follows(answer, asked), answer
    assert not follows("  \n", asked), "an empty answer follows nothing"


def test_every_instruction_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(CHECKERS)


@given(st.text(max_size=80), st.sampled_from([c for c in CASES if not c[0].startswith("language")]))
def test_no_answer_raises(answer: str, case: tuple[str, dict[str, Any], list[str], list[str]]) -> None:
    assert follows(answer, instruction(case[0], case[1])) in (True, False)


def test_strict_and_loose_by_hand() -> None:
    asked = [instruction("startend:quotation", {}), instruction("punctuation:no_comma", {})]
    # The introduction breaks both strictly; without the first line both are followed.
    parts = instruction_parts('Sure, here it is:\n"All of it"', asked)
    assert parts == {
        "ifeval_prompt_strict": Part(0.0),
        "ifeval_instruction_strict": Part(0, 2),
        "ifeval_prompt_loose": Part(1.0),
        "ifeval_instruction_loose": Part(2, 2),
    }
    # One of two, strictly and loosely.
    parts = instruction_parts("no quotation", asked)
    assert parts["ifeval_instruction_strict"] == parts["ifeval_instruction_loose"] == Part(1, 2)
    assert parts["ifeval_prompt_loose"] == Part(0.0)


def test_the_eight_loose_variants() -> None:
    assert loose_variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert loose_variants("one") == ["one", ""]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("punctuation:no_coma", {}, r"rows.jsonl:7: the instruction 'punctuation:no_coma' is not known. Did you mean"),
        ("punctuation:no_comma", {"n": 1}, r"takes \[\], and 'kwargs' gives \['n'\]"),
        ("length_constraints:number_words", {"num_words": 3}, r"takes \['num_words', 'relation'\]"),
    ],
)
def test_what_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_arguments([instruction(name, arguments)], "rows.jsonl:7")


def test_languages_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("langdetect") is not None
    monkeypatch.setitem(sys.modules, "langdetect.detector_factory", None)
    content.language_profiles.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"needs langdetect; run `pip install 'stillhouse\[metrics\]'`"):
        content.language_profiles()


def test_the_real_instructions_are_known(shared_data: Path) -> None:
    lines = (shared_data / "eval" / "ifeval.jsonl").read_text(encoding="utf-8").splitlines()
    seen = set()
    for number, line in enumerate(lines, start=1):
        instructions = parse_checks(json.loads(line), f"ifeval.jsonl:{number}").instructions
        check_arguments(instructions, f"ifeval.jsonl:{number}")
        seen |= {i.id for i in instructions}
    assert seen == set(CHECKERS)
