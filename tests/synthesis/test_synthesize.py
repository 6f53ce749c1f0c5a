"""The loop: what is kept and why not, going on after a kill, and every way to end badly."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scripted import ANIMALS, INSTRUCTION, Scripted, fresh_input, row

from stillhouse.data.rows import Message, Row
from stillhouse.data.sources import load_rows
from stillhouse.errors import DataError, OutputError, SynthesisError
from stillhouse.recipe import SourceConfig, SynthesisConfig
from stillhouse.rollout.generator import Completion
from stillhouse.synthesis.run import SynthesisModels, SynthesisOutcome, SynthesisProgress, rows_wanted, synthesize

LABELS = {"type": "labels", "labels": ["yes", "no"]}


def config(**changes: Any) -> SynthesisConfig:
    data = {"dir": "unused", "count": 6, "format": LABELS, "batch_size": 4, "filters": {"nll_tail": 0}}
    return SynthesisConfig.model_validate({**data, **changes})


def writer() -> Scripted:
    """Every third input is a copy of a seed."""
    return Scripted(lambda _, n: ANIMALS[0][0] if n % 3 == 2 else fresh_input(n), "writer")


def labeller() -> Scripted:
    """Every fifth answer is no label."""
    return Scripted(lambda _, n: "maybe so" if n % 5 == 4 else ("yes", "no")[n % 2], "labeller")


def models() -> SynthesisModels:
    return SynthesisModels(writer(), labeller())


def rows_of(outcome: SynthesisOutcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outcome.directory / "synthetic.jsonl").read_text().splitlines()]


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_rows_are_kept_until_the_target_and_every_other_has_its_reason(seeds: list[Row], tmp_path: Path) -> None:
    outcome = synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=0)
    report = outcome.report
    assert outcome.rows == report["kept"] == len(rows_of(outcome)) == 6
    # Batches of 4: inputs 2, 5, 8, 11 are copies; of the 8 labelled ones the fifth is no label.
    assert report["candidates"] == 12
    assert report["rejected"] == {"duplicate": 4, "answer_format": 1, "surplus": 1}
    assert report["stopped"] == "target"
    assert report["ratio_achieved"] == 6 / 8
    candidates = [line for line in journal_of(outcome.directory) if "number" in line]
    assert [c["rejection"] and c["rejection"]["reason"] for c in candidates[:3]] == [None, None, "duplicate"]
    assert candidates[2]["rejection"]["detail"] == "seed human-0"


def test_rows_can_be_trained_on_and_tell_where_they_come_from(seeds: list[Row], tmp_path: Path) -> None:
    outcome = synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=7)
    loaded = load_rows([SourceConfig(path="x/synthetic.jsonl")], seed=0, base_dir=tmp_path)
    assert [r.domain for r in loaded] == ["pets"] * 6
    first = loaded[0]
    assert first.messages == (Message("user", INSTRUCTION + fresh_input(0)), Message("assistant", "yes"))
    assert first.answer == "yes"
    assert len({r.id for r in loaded}) == 6
    provenance = rows_of(outcome)[0]["provenance"]
    assert len(provenance["seeds"]) == 8, "six human examples, and two in the place of synthetic ones"
    assert set(provenance["seeds"]) <= {s.id for s in seeds}
    assert (provenance["input_model"], provenance["label_model"], provenance["seed"]) == ("writer", "labeller", 7)
    assert provenance["inputs"]["temperature"] == 0.8
    later = [r["provenance"] for r in rows_of(outcome) if r["provenance"]["synthetic"]]
    assert later, "the second batch sees kept inputs"
    known = {r["id"] for r in rows_of(outcome)}
    assert all(len(p["seeds"]) == 6 and len(p["synthetic"]) == 2 and set(p["synthetic"]) <= known for p in later)


def test_the_writer_sees_examples_without_their_frame(seeds: list[Row], tmp_path: Path) -> None:
    asked = models()
    synthesize(config(description="Animals."), seeds, asked, directory=tmp_path / "x", seed=0)
    assert isinstance(asked.inputs, Scripted)
    prompt = asked.inputs.prompts[0]
    assert prompt[0].content.startswith("Animals.\n\n")
    assert {m.content for m in prompt if m.role == "assistant"} == {text for text, _ in ANIMALS}
    assert prompt[-1].role == "user"
    assert len(set(asked.inputs.seeds)) == len(asked.inputs.seeds), "each batch draws anew"


def test_the_labeller_sees_the_nearest_seeds(seeds: list[Row], tmp_path: Path) -> None:
    near = "a small brown dog in a garden"
    asked = SynthesisModels(Scripted(lambda _, n: near if n == 0 else fresh_input(n)), labeller())
    synthesize(config(labels={"examples": 2}), seeds, asked, directory=tmp_path / "x", seed=0)
    assert isinstance(asked.labels, Scripted)
    *shown, question = asked.labels.prompts[0]
    assert question == Message("user", INSTRUCTION + near)
    assert shown[2:] == [Message("user", INSTRUCTION + ANIMALS[0][0]), Message("assistant", "yes")]
    assert [m.role for m in shown] == ["user", "assistant"] * 2


@pytest.mark.parametrize(("label_model", "turns"), [(None, 9), ({"path": "tuned"}, 1)])
def test_a_labeller_of_its_own_sees_no_examples(
    seeds: list[Row], tmp_path: Path, label_model: dict[str, str] | None, turns: int
) -> None:
    asked = models()
    synthesize(config(label_model=label_model), seeds, asked, directory=tmp_path / "x", seed=0)
    assert isinstance(asked.labels, Scripted)
    assert {len(p) for p in asked.labels.prompts} == {turns}


def test_samples_vote(seeds: list[Row], tmp_path: Path) -> None:
    """Input 0: yes, no, no, nonsense -> no with half of the votes; input 1: four different ones -> none."""
    said = ["yes", "no", "no", "nonsense", "yes", "no", "what", "how"]
    asked = SynthesisModels(Scripted(lambda _, n: fresh_input(n)), Scripted(lambda _, n: said[n % 8]))
    labels = {"samples": 4, "temperature": 0.7, "min_agreement": 0.5}
    outcome = synthesize(config(count=2, labels=labels), seeds, asked, directory=tmp_path / "x", seed=0)
    assert outcome.report["rejected"] == {"no_agreement": 2}
    assert [(r["answer"], r["provenance"]["agreement"]) for r in rows_of(outcome)] == [("no", 0.5)] * 2


class ScoredByLength:
    """NLL = number of the words in the question."""

    def score(self, conversations: Any) -> list[float | None]:
        return [float(len(c[-2].content)) for c in conversations]


def test_the_ends_of_the_nll_are_dropped_and_made_up_for(seeds: list[Row], tmp_path: Path) -> None:
    asked = SynthesisModels(Scripted(lambda _, n: fresh_input(n)), Scripted(lambda *_: "yes"), ScoredByLength())
    outcome = synthesize(
        config(count=8, filters={"nll_tail": 0.1}, batch_size=5), seeds, asked, directory=tmp_path / "x", seed=0
    )
    # Ten pass; floor(.1 * 10) = 1 goes at either end, and eight are left.
    assert outcome.report["rejected"] == {"nll": 2}
    nlls = [c["nll"] for c in journal_of(outcome.directory) if "number" in c]
    assert outcome.report["quality"]["nll_range"] == [sorted(nlls)[1], sorted(nlls)[-2]]


# --- going on ---------------------------------------------------------------------------------


class Replies:
    """Deterministic like a model: what it says follows from prompt and seed, not from how often it was asked."""

    def __init__(self, name: str, choices: list[str]) -> None:
        self.fingerprint, self.choices, self.calls = name, choices, 0

    def generate(self, prompts: Any, settings: Any, *, seed: int) -> list[Any]:
        self.calls += 1
        return [Completion(self.choices[(seed + 7 * i) % len(self.choices)], True, 2) for i, _ in enumerate(prompts)]


def deterministic() -> SynthesisModels:
    return SynthesisModels(Replies("w", [fresh_input(n) for n in range(90)]), Replies("l", ["yes", "no", "perhaps"]))


def test_a_synthesis_killed_anywhere_ends_as_if_it_had_not_been(seeds: list[Row], tmp_path: Path) -> None:
    whole = synthesize(config(count=9), seeds, deterministic(), directory=tmp_path / "whole", seed=3)
    journal = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(journal) if byte == 10]
    for number, end in enumerate(sorted({*ends[::2], *(e - 5 for e in ends[1::4])})):
        folder = tmp_path / f"cut{number}"
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(journal[:end])
        again = synthesize(config(count=9), seeds, deterministic(), directory=folder, seed=3)
        assert (folder / "synthetic.jsonl").read_bytes() == (tmp_path / "whole" / "synthetic.jsonl").read_bytes()
        assert {**again.report, "seconds": 0} == {**whole.report, "seconds": 0}


def test_a_finished_synthesis_asks_nobody_again_and_a_larger_target_goes_on(seeds: list[Row], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    synthesize(config(count=5), seeds, deterministic(), directory=folder, seed=3)
    first = (folder / "synthetic.jsonl").read_text()
    idle = deterministic()
    synthesize(config(count=5), seeds, idle, directory=folder, seed=3)
    assert isinstance(idle.inputs, Replies)
    assert idle.inputs.calls == 0
    synthesize(config(count=9), seeds, deterministic(), directory=folder, seed=3)
    longer = (folder / "synthetic.jsonl").read_text()
    assert longer.startswith(first)
    assert len(longer.splitlines()) == 9


@pytest.mark.parametrize(
    ("changes", "seed", "field"), [({"human_examples": 5}, 3, "settings"), ({}, 4, "seed"), ({"format": LABELS}, 3, "")]
)
def test_another_synthesis_in_the_folder_is_refused(
    seeds: list[Row], tmp_path: Path, changes: dict[str, Any], seed: int, field: str
) -> None:
    synthesize(config(), seeds, deterministic(), directory=tmp_path / "x", seed=3)
    if not field:
        field, asked = "input_model", SynthesisModels(Replies("other", ["a b c d e"]), Replies("l", ["yes"]))
    else:
        asked = deterministic()
    with pytest.raises(OutputError, match=rf"journal is of another synthesis \(different: {field}\)"):
        synthesize(config(**changes), seeds, asked, directory=tmp_path / "x", seed=seed)
    outcome = synthesize(config(**changes), seeds, deterministic(), directory=tmp_path / "x", seed=seed, overwrite=True)
    assert outcome.rows == 6


def test_foreign_folders_and_journals_are_refused(seeds: list[Row], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    with pytest.raises(OutputError, match="other files are here"):
        synthesize(config(), seeds, models(), directory=tmp_path / "mine", seed=0)
    synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=0)
    journal = tmp_path / "x" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], "{damaged\n", *lines[2:]]))
    with pytest.raises(OutputError, match=r"journal\.jsonl:2: this line is damaged"):
        synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=0)
    journal.write_text("[1]\n")
    with pytest.raises(OutputError, match="no journal of a synthesis"):
        synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=0)


# --- ending badly -----------------------------------------------------------------------------


def test_a_writer_that_only_repeats_is_stopped(seeds: list[Row], tmp_path: Path) -> None:
    """One good row, then repetitions of it: the row stays, with the ratio that was reached."""
    asked = SynthesisModels(Scripted(lambda *_: fresh_input(1)), Scripted(lambda *_: "yes"))
    outcome = synthesize(config(max_fruitless_batches=3), seeds, asked, directory=tmp_path / "x", seed=0)
    assert outcome.report["stopped"] == "fruitless"
    assert (outcome.rows, outcome.report["candidates"]) == (1, 4 + 3 * 4)
    assert outcome.report["ratio_achieved"] == 1 / 8
    assert "the last 3 batches of 4 candidates brought none" in outcome.report["warnings"][0]


def test_nothing_kept_is_an_error_with_its_reasons_and_a_report(seeds: list[Row], tmp_path: Path) -> None:
    asked = SynthesisModels(Scripted(lambda *_: ANIMALS[3][0]), Scripted(lambda *_: "yes"))
    with pytest.raises(SynthesisError, match=r"none of 8 candidates was kept \(duplicate 8\).*seed human-3"):
        synthesize(config(max_fruitless_batches=2), seeds, asked, directory=tmp_path / "x", seed=0)
    assert json.loads((tmp_path / "x" / "synthesis_report.json").read_text())["kept"] == 0
    assert (tmp_path / "x" / "synthetic.jsonl").read_text() == ""


def test_the_number_of_candidates_is_bounded(seeds: list[Row], tmp_path: Path) -> None:
    outcome = synthesize(config(count=20, max_candidates=6), seeds, models(), directory=tmp_path / "x", seed=0)
    assert outcome.report["stopped"] == "max_candidates"
    assert outcome.report["candidates"] == 6
    assert "synthesis.max_candidates was reached" in outcome.report["warnings"][0]


def test_too_few_seeds(seeds: list[Row], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"synthesis.human_examples=6: domain 'pets' has only 5 seeds"):
        synthesize(config(), seeds[:5], models(), directory=tmp_path / "x", seed=0)
    with pytest.raises(DataError, match=r"synthesis.seeds: there is no row"):
        synthesize(config(), [], models(), directory=tmp_path / "x", seed=0)


def test_seeds_that_give_the_evaluation_away_stop_everything(seeds: list[Row], tmp_path: Path) -> None:
    evaluation = [row(ANIMALS[2][0].upper(), "yes", number=9, file="test.jsonl"), row("a goldfish", "yes", number=10)]
    with pytest.raises(
        DataError, match=r"1 of 8 seeds contaminate(?s:.*)human.jsonl:3 gives away 100% of test.jsonl:10"
    ):
        synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=0, evaluation=evaluation)
    assert not (tmp_path / "x").exists()
    drop = {"nll_tail": 0, "contaminated_seeds": "drop"}
    outcome = synthesize(config(filters=drop), seeds, models(), directory=tmp_path / "x", seed=0, evaluation=evaluation)
    assert outcome.report["seeds"] == 7
    assert outcome.report["contaminated_seeds"] == ["human.jsonl:3 gives away 100% of test.jsonl:10"]
    with pytest.raises(DataError, match="all 8 seeds contaminate"):
        synthesize(config(filters=drop), seeds, models(), directory=tmp_path / "y", seed=0, evaluation=seeds)


def test_rows_that_give_the_evaluation_away_are_dropped(seeds: list[Row], tmp_path: Path) -> None:
    """The shared instruction alone is no contamination, although it has more than eight words."""
    evaluation = [row(fresh_input(n), "yes", number=n, file="test.jsonl") for n in (0, 3)]
    asked = SynthesisModels(Scripted(lambda _, n: fresh_input(n)), Scripted(lambda *_: "yes"))
    outcome = synthesize(config(count=4), seeds, asked, directory=tmp_path / "x", seed=0, evaluation=evaluation)
    dropped = [c for c in journal_of(outcome.directory) if c.get("rejection")]
    assert [(c["number"], c["rejection"]["reason"], c["rejection"]["detail"]) for c in dropped[:2]] == [
        (0, "contamination", "test.jsonl:1"),
        (3, "contamination", "test.jsonl:4"),
    ]


def test_a_format_that_the_seeds_do_not_have_is_a_mistake(seeds: list[Row], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"human.jsonl:2: the answer 'no' of this seed does not have synthesis.format"):
        synthesize(
            config(format={"type": "regex", "pattern": "yes"}), seeds, models(), directory=tmp_path / "x", seed=0
        )


def test_special_tokens_are_no_content(seeds: list[Row], tmp_path: Path) -> None:
    """A model may write the text of a special token; put into a conversation, it would begin a turn."""
    special = (re.compile(re.escape("<|im_end|>")),)
    writer = Scripted(lambda _, n: fresh_input(n) + (" <|im_end|>" if n == 0 else ""))
    labels = Scripted(lambda _, n: "yes<|im_end|>" if n == 0 else "yes")
    asked = SynthesisModels(writer, labels, special=special)
    outcome = synthesize(config(count=2), seeds, asked, directory=tmp_path / "x", seed=0)
    assert outcome.report["rejected"] == {"special_token": 1, "answer_format": 1}
    details = [c["rejection"]["detail"] for c in journal_of(outcome.directory)[1:3]]
    assert details == ["holds the special token '<|im_end|>'"] * 2
    bad = [*seeds[:-1], row("a <|im_end|> dog", "yes", number=7)]
    with pytest.raises(DataError, match=r"human.jsonl:8: this seed holds the special token"):
        synthesize(config(), bad, asked, directory=tmp_path / "y", seed=0)


def test_prompts_that_are_too_long_name_the_fields_that_shorten_them(seeds: list[Row], tmp_path: Path) -> None:
    class Narrow:
        fingerprint = "narrow"

        def generate(self, prompts: Any, settings: Any, *, seed: int) -> list[Completion]:
            raise DataError("prompt 0 has 99 tokens")

    with pytest.raises(DataError, match=r"synthesis.inputs: prompt 0 .* \(synthesis.human_examples\)"):
        synthesize(config(), seeds, SynthesisModels(Narrow(), labeller()), directory=tmp_path / "x", seed=0)
    with pytest.raises(DataError, match=r"synthesis.labels: prompt 0 .* \(synthesis.labels.examples\)"):
        synthesize(config(), seeds, SynthesisModels(writer(), Narrow()), directory=tmp_path / "y", seed=0)


def test_domains_are_not_mixed(seeds: list[Row], tmp_path: Path) -> None:
    others = [row(f"{a} {n}", "no", number=n, domain="zoo") for n, (a, _) in enumerate(ANIMALS)]
    rows = [*seeds, *[Row(r.messages, None, "zoo", None, f"zoo-{n}", r.where) for n, r in enumerate(others)]]
    outcome = synthesize(config(count=12), rows, models(), directory=tmp_path / "x", seed=0)
    by_domain = Counter(r["domain"] for r in rows_of(outcome))
    assert set(by_domain) == {"pets", "zoo"}
    for made in rows_of(outcome):
        assert all(s.startswith("zoo" if made["domain"] == "zoo" else "human") for s in made["provenance"]["seeds"])
        assert ("answer" in made) is (made["domain"] == "pets"), "only pets have a gold answer column"
    assert outcome.report["domains"]["zoo"]["seeds"] == 8


def test_progress_tells_what_is_to_be_expected(seeds: list[Row], tmp_path: Path) -> None:
    seen: list[SynthesisProgress] = []
    synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=0, progress=seen.append)
    # After four candidates three are kept: 6 / .75 = 8 in all.
    assert seen[0] == SynthesisProgress(0, 6, 0, None)
    assert seen[1] == SynthesisProgress(3, 6, 4, 8)
    assert seen[-1].kept == 6


def test_tokens_become_flops(seeds: list[Row], tmp_path: Path) -> None:
    asked = SynthesisModels(writer(), labeller(), input_parameters=100, label_parameters=None)
    report = synthesize(config(), seeds, asked, directory=tmp_path / "x", seed=0).report
    # 12 inputs: 10 read and 3 written each, 2 FLOPs for each of 100 parameters.
    assert report["tokens"]["inputs"] == {"prompt": 120, "generated": 36, "flops": 2 * 100 * 156}
    assert report["tokens"]["labels"] == {"prompt": 80, "generated": 24, "flops": None}


def test_the_report_describes_the_set(seeds: list[Row], tmp_path: Path) -> None:
    report = synthesize(config(), seeds, models(), directory=tmp_path / "x", seed=0).report
    assert report["labels"]["yes"]["human"] == report["labels"]["no"]["human"] == 4
    assert sum(count["synthetic"] for count in report["labels"].values()) == 6
    # Eight answered, seven of them with a label.
    assert report["quality"]["format_pass_rate"] == 7 / 8
    assert report["quality"]["refusal_rate"] == 0
    assert report["diversity"]["sets"]["synthetic"]["texts"] == 6
    assert "not filtered by NLL" not in " ".join(report["warnings"])
    assert any("no evaluation rows" in warning for warning in report["warnings"])


def test_ratio_and_count() -> None:
    assert rows_wanted(config(count=None, ratio=10), 200) == 2000
    assert rows_wanted(config(count=None, ratio=0.01), 8) == 1
    assert rows_wanted(config(count=7), 200) == 7
