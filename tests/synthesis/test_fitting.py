"""Prompts that are too long for a model: with fewer examples, without the candidate, or an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import ANIMALS, Scripted, fresh_input, row

from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError
from stillhouse.recipe import SynthesisConfig
from stillhouse.rollout.generator import Completion, SamplingSettings
from stillhouse.synthesis.candidates import Candidate
from stillhouse.synthesis.fitting import farthest, fit_examples, longest
from stillhouse.synthesis.run import SynthesisModels, synthesize
from stillhouse.synthesis.seeds import Seed


class Narrow(Scripted):
    """Has room for so many words, and like a model refuses a batch with one prompt above."""

    def __init__(self, reply: Any, words: int) -> None:
        super().__init__(reply, f"narrow-{words}")
        self.words = words

    def fits(self, prompt: list[Message], max_new_tokens: int) -> bool:
        return sum(len(m.content.split()) for m in prompt) <= self.words

    def generate(self, prompts: Sequence[list[Message]], settings: SamplingSettings, *, seed: int) -> list[Completion]:
        if not all(self.fits(prompt, settings.max_new_tokens) for prompt in prompts):
            raise DataError("prompt 0 is too long")
        return super().generate(prompts, settings, seed=seed)


def config(**changes: Any) -> SynthesisConfig:
    data = {
        **{"dir": "x", "count": 6, "human_examples": 3, "synthetic_examples": 0, "batch_size": 4},
        **{"format": {"type": "regex", "pattern": ".*"}, "filters": {"nll_tail": 0, "length_factor": None}},
    }
    return SynthesisConfig.model_validate({**data, **changes})


def writer(words: int) -> Narrow:
    return Narrow(lambda _, n: fresh_input(n), words)


def labeller(words: int) -> Narrow:
    return Narrow(lambda *_: "yes", words)


@pytest.fixture
def uneven() -> list[Row]:
    """One of eight seeds has sixty words; the others have seven or fewer."""
    rows = [row(text, answer, number=i) for i, (text, answer) in enumerate(ANIMALS[:-1])]
    return [*rows, row("bear " * 59 + "again", "no", number=7)]


def journal_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if "number" in line]


def test_the_longest_example_goes_and_the_rest_of_the_draw_stays(uneven: list[Row], tmp_path: Path) -> None:
    wide = synthesize(config(), uneven, SynthesisModels(writer(999), labeller(999)), directory=tmp_path / "w", seed=0)
    narrow = synthesize(config(), uneven, SynthesisModels(writer(80), labeller(999)), directory=tmp_path / "n", seed=0)
    drawn = [c["seeds"] for c in journal_of(wide.directory)]
    assert any("human-7" in seeds for seeds in drawn), "the long seed is drawn"
    assert [c["seeds"] for c in journal_of(narrow.directory)] == [
        [s for s in seeds if s != "human-7"] for seeds in drawn
    ]
    assert narrow.report["rejected"] == wide.report["rejected"]


def test_a_candidate_that_cannot_be_shortened_is_left_out(uneven: list[Row], tmp_path: Path) -> None:
    """One example in the prompt: where it is the long seed, nothing can go."""
    models = SynthesisModels(writer(40), labeller(999))
    outcome = synthesize(config(human_examples=1, count=20), uneven, models, directory=tmp_path / "x", seed=1)
    candidates = journal_of(outcome.directory)
    long = [c for c in candidates if c["seeds"] == ["human-7"]]
    assert outcome.report["rejected"]["prompt_too_long"] == len(long) > 0
    assert all(c["rejection"] == {"reason": "prompt_too_long", "detail": "the writer's"} for c in long)
    idle = SynthesisModels(writer(40), labeller(999))
    again = synthesize(config(human_examples=1, count=20), uneven, idle, directory=tmp_path / "x", seed=1)
    assert (again.report["rejected"], again.rows) == (outcome.report["rejected"], 20)


def test_the_labeller_sees_fewer_seeds_or_no_question(seeds: list[Row], tmp_path: Path) -> None:
    """Questions have 9 words of instruction and 4 to 7 more; every fifth input has forty."""
    texts = [fresh_input(n) + (" and so on" * 12 if n % 5 == 4 else "") for n in range(40)]
    models = SynthesisModels(Scripted(lambda _, n: texts[n]), labeller(50))
    outcome = synthesize(config(), seeds, models, directory=tmp_path / "x", seed=0)
    assert outcome.report["rejected"]["prompt_too_long"] == 1
    (left_out,) = [c for c in journal_of(outcome.directory) if (c["rejection"] or {}).get("detail") == "the labeller's"]
    assert left_out["text"] == texts[4]
    assert Candidate(0, "d", (), (), "seen").input_passed
    assert isinstance(models.labels, Narrow)
    # 13 to 16 words a question and one more for the answer: two examples fit beside it, four do not.
    assert {len(prompt) for prompt in models.labels.prompts} <= {5, 7}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((5, 999), "synthesis.inputs: even with a single example, no prompt of the first batch leaves room"),
        ((999, 5), "synthesis.labels: even without examples, no prompt of the first batch leaves room"),
    ],
)
def test_when_nothing_fits_it_is_an_error_and_other_settings_may_follow(
    seeds: list[Row], tmp_path: Path, words: tuple[int, int], message: str
) -> None:
    models = SynthesisModels(writer(words[0]), labeller(words[1]))
    with pytest.raises(DataError, match=message):
        synthesize(config(), seeds, models, directory=tmp_path / "x", seed=0)
    better = SynthesisModels(writer(999), labeller(999))
    assert synthesize(config(human_examples=2), seeds, better, directory=tmp_path / "x", seed=0).rows == 6


def test_which_example_goes() -> None:
    def seed(text: str) -> Seed:
        return Seed(text, "f:1", "d", None, text, "yes")

    made = Candidate(0, "d", (), (), "a made up one")
    assert longest([seed("ab"), seed("abc"), made]) == 2
    assert longest([seed("a much longer human one"), made]) == 1, "the last human example stays"
    assert longest([seed("ab"), seed("abcd")]) == 1
    assert longest([seed("ab")]) is None
    assert (farthest([seed("ab"), seed("abcd")]), farthest([])) == (0, None)
    assert fit_examples([seed("ab"), seed("abcd")], lambda found: len(found) < 2, longest) == [seed("ab")]
    assert fit_examples([seed("ab")], lambda found: False, longest) is None
    assert fit_examples([seed("ab")], lambda found: not found, farthest) == []
