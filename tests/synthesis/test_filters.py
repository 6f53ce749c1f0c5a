"""Each reason to drop an input or an answer."""

from __future__ import annotations

import sys

import pytest

from stillhouse.data.rows import Row
from stillhouse.errors import MissingDependencyError
from stillhouse.recipe import SynthesisFilters
from stillhouse.rollout.generator import Completion
from stillhouse.synthesis.candidates import Rejection
from stillhouse.synthesis.decontamination import EvaluationIndex
from stillhouse.synthesis.filters import InputFilter, LengthRange, choose_answer, language, length_range
from stillhouse.synthesis.formats import Format
from stillhouse.synthesis.near_duplicates import NearDuplicates
from stillhouse.synthesis.seeds import seed_domains
from stillhouse.synthesis.words import rouge_l

NO_DIGITS = Format(lambda text: "has digits" if any(c.isdigit() for c in text) else None, str.strip)
LABEL = Format(lambda text: None if text in ("yes", "no", "maybe") else "no label", str.strip)
ANY_LENGTH = LengthRange(None)


def judge(seeds: list[Row], text: str, *, finished: bool = True, **changes: object) -> Rejection | None:
    config = SynthesisFilters.model_validate(changes)
    domains = seed_domains(seeds, frame=None, needed=1)
    leaked = [seeds[0]]
    index = EvaluationIndex(["what did the owl in the barn do with her mouse"], 0.5)
    return InputFilter(config, domains.values(), NO_DIGITS, index, leaked).judge(text, "pets", finished=finished)


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("", "empty_input", ""),
        ("an owl\nin our barn", "input_format", "several lines; the seeds have one"),
        ("a very small spider number 5", "input_format", "has digits"),
        ("owl", "input_length", "1 words; 3 to 14 are expected"),
        ("A small  brown dog FROM the village", "duplicate", "seed human-0"),
        ("a small brown cat from the village", "near_duplicate", "ROUGE-L 0.86 with seed human-0"),
        ("what did the owl in the barn do", "contamination", "human.jsonl:1"),
    ],
)
def test_why_an_input_is_dropped(seeds: list[Row], text: str, reason: str, detail: str) -> None:
    found = judge(seeds, text)
    assert found is not None
    assert (found.reason, found.detail) == (reason, detail)


def test_a_cut_input_is_dropped_and_a_good_one_is_not(seeds: list[Row]) -> None:
    assert judge(seeds, "an owl in our barn", finished=False) == Rejection("unfinished_input")
    assert judge(seeds, "an owl in our barn") is None
    assert judge(seeds, "owl", length_factor=None) is None


def test_languages(seeds: list[Row]) -> None:
    german = "ein alter grauer Esel auf der Wiese"
    assert judge(seeds, german) is None
    assert judge(seeds, german, languages=["en"]) == Rejection("language", "de")
    assert judge(seeds, german, languages=["en", "de"]) is None
    assert language("Where is my new bank card?") == "en"


def test_lengths() -> None:
    assert length_range(["a b", "a b c d"], 2.0).bounds == (1.0, 8.0)
    assert length_range(["a b", "a b c d"], 1.0).problem("a") == "1 words; 2 to 4 are expected"


def answers(*texts: str | None) -> list[Completion]:
    return [Completion(text or "cut", text is not None, 1) for text in texts]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (("yes",), ("yes", 1.0, None)),
        ((None, None), (None, None, Rejection("unfinished_answer"))),
        (("perhaps", None), ("perhaps", None, Rejection("answer_format", "no label"))),
        ((" ", None), ("", None, Rejection("empty_answer"))),
        # Of four samples two agree; what has no format does not vote, but counts in the share.
        (("no", "yes", "yes", "perhaps"), ("yes", 0.5, None)),
        (("no", "yes", "maybe", None), ("no", 0.25, Rejection("no_agreement", "1 of 4 samples agree"))),
    ],
)
def test_the_answer_that_is_chosen(samples: tuple[str | None, ...], expected: tuple[object, ...]) -> None:
    assert choose_answer(answers(*samples), LABEL, ANY_LENGTH, 0.5) == expected


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (("yes",), ("yes", 1.0, None)),
        (("no",), ("no", None, Rejection("verifier", ""))),
        # The most frequent accepted answer wins; what is refused is no dissent, but the share is of all four.
        (("no", "no", "no", "yes"), ("yes", 0.25, None)),
        (("no", "maybe", "yes", "maybe"), ("maybe", 0.5, None)),
        (
            ("no", "no", None, "perhaps"),
            ("no", None, Rejection("verifier", "all 2 samples with the format are refused")),
        ),
        # A text without the format is never shown to the verifier.
        (("perhaps",), ("perhaps", None, Rejection("answer_format", "no label"))),
    ],
)
def test_only_answers_that_the_verifier_accepts_vote(
    samples: tuple[str | None, ...], expected: tuple[object, ...]
) -> None:
    seen: list[str] = []

    def accepts(answer: str) -> bool:
        seen.append(answer)
        return answer != "no"

    assert choose_answer(answers(*samples), LABEL, ANY_LENGTH, 0.5, accepts) == expected
    assert len(seen) == len(set(seen)), "equal answers are verified once"
    assert "perhaps" not in seen


def test_accepted_answers_may_still_disagree() -> None:
    found = choose_answer(answers("no", "yes", "maybe"), LABEL, ANY_LENGTH, 0.6, lambda answer: answer != "no")
    assert found == ("yes", 1 / 3, Rejection("no_agreement", "1 of 2 accepted samples agree"))


def test_an_answer_of_the_wrong_length() -> None:
    short = length_range(["one two three four"], 2.0)
    found = choose_answer(answers("yes"), LABEL, short, 0.5)
    assert found == ("yes", 1.0, Rejection("answer_length", "1 words; 2 to 8 are expected"))


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("datasketch", lambda: NearDuplicates(0.7)),
        ("rapidfuzz.distance", lambda: rouge_l(("a",), ("a",))),
        ("py3langid", lambda: language("a")),
    ],
)
def test_a_missing_package_is_named(package: str, use: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert callable(use)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stillhouse\[synthesis\]'"):
        use()
