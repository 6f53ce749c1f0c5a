"""Whether an answer follows its instructions, strictly and loosely, at prompt and at instruction level."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from stillhouse.data.checkable import Instruction
from stillhouse.errors import DataError, did_you_mean
from stillhouse.evaluation.ifeval import content, layout
from stillhouse.evaluation.scores import Part

CHECKERS: Mapping[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": content.capital_word_frequency,
    "change_case:english_capital": content.english_capital,
    "change_case:english_lowercase": content.english_lowercase,
    "combination:repeat_prompt": layout.repeats_prompt,
    "combination:two_responses": layout.two_responses,
    "detectable_content:number_placeholders": layout.number_placeholders,
    "detectable_content:postscript": layout.postscript,
    "detectable_format:constrained_response": layout.constrained_response,
    "detectable_format:json_format": layout.json_format,
    "detectable_format:multiple_sections": layout.multiple_sections,
    "detectable_format:number_bullet_lists": layout.number_bullets,
    "detectable_format:number_highlighted_sections": layout.number_highlights,
    "detectable_format:title": layout.title,
    "keywords:existence": content.keywords_exist,
    "keywords:forbidden_words": content.no_forbidden_words,
    "keywords:frequency": content.keyword_frequency,
    "keywords:letter_frequency": content.letter_frequency,
    "language:response_language": content.response_language,
    "length_constraints:nth_paragraph_first_word": content.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": content.number_of_paragraphs,
    "length_constraints:number_sentences": content.number_of_sentences,
    "length_constraints:number_words": content.number_of_words,
    "punctuation:no_comma": content.no_comma,
    "startend:end_checker": layout.ends_with,
    "startend:quotation": layout.quotation,
}


def check_arguments(instructions: Sequence[Instruction], where: str) -> None:
    """Raise DataError for an id that is not known and for arguments that do not fit it."""
    for instruction in instructions:
        checker = CHECKERS.get(instruction.id)
        if checker is None:
            hint = did_you_mean(instruction.id, CHECKERS)
            raise DataError(
                f"{where}: the instruction {instruction.id!r} is not known.{hint} Take the row out, or leave the metric"
                " ifeval out"
            )
        wanted = [name for name in inspect.signature(checker).parameters if name != "answer"]
        given = [name for name, _ in instruction.arguments]
        if sorted(wanted) != sorted(given):
            raise DataError(
                f"{where}: the instruction {instruction.id!r} takes {sorted(wanted)}, and 'kwargs' gives {sorted(given)}"
            )


def follows(answer: str, instruction: Instruction) -> bool:
    """Whether the answer, as it is, follows the instruction; an empty one follows none."""
    return bool(answer.strip()) and CHECKERS[instruction.id](answer, **dict(instruction.arguments))


def loose_variants(answer: str) -> list[str]:
    """Return the answer as it is and without first line, last line, both, each also without asterisks.

    Chat models wrap what was asked for in an introduction, a closing remark and Markdown.
    """
    lines = answer.split("\n")
    trimmed = [answer, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    stripped = [answer, *(text.strip() for text in trimmed[1:])]
    return list(dict.fromkeys([*stripped, *(text.replace("*", "") for text in stripped)]))


def instruction_parts(answer: str, instructions: Sequence[Instruction]) -> dict[str, Part]:
    """Return the four scores of one answer: all instructions followed, and how many of how many."""
    strict = [follows(answer, instruction) for instruction in instructions]
    variants = loose_variants(answer)
    loose = [any(follows(variant, instruction) for variant in variants) for instruction in instructions]
    return {
        "ifeval_prompt_strict": Part(float(all(strict))),
        "ifeval_instruction_strict": Part(sum(strict), len(instructions)),
        "ifeval_prompt_loose": Part(float(all(loose))),
        "ifeval_instruction_loose": Part(sum(loose), len(instructions)),
    }
