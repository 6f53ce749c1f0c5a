"""A verifier: which answers it lets through, and that a journal knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import Scripted, fresh_input

from stillhouse.data.rows import Row
from stillhouse.errors import OutputError
from stillhouse.recipe import SynthesisConfig
from stillhouse.synthesis.run import SynthesisModels, synthesize


def config(**labels: object) -> SynthesisConfig:
    return SynthesisConfig.model_validate(
        {
            "dir": "x",
            "count": 3,
            "format": {"type": "labels", "labels": ["yes", "no"]},
            "batch_size": 4,
            "filters": {"nll_tail": 0},
            "labels": labels,
        }
    )


def models(*said: str) -> SynthesisModels:
    return SynthesisModels(Scripted(lambda _, n: fresh_input(n)), Scripted(lambda _, n: said[n % len(said)]))


def even(text: str, answer: str) -> bool:
    """The number in :func:`fresh_input` is even, and the answer says so."""
    return (int(text.split()[1]) % 2 == 0) is (answer == "yes")


def test_one_answer_is_accepted_or_refused(seeds: list[Row], tmp_path: Path) -> None:
    """The labeller always says yes, and half of the numbers are odd."""
    outcome = synthesize(config(), seeds, models("yes"), directory=tmp_path / "x", seed=0, verifier=even)
    assert outcome.report["rejected"] == {"verifier": 4, "surplus": 1}
    rows = [json.loads(line) for line in (tmp_path / "x" / "synthetic.jsonl").read_text().splitlines()]
    assert [int(row["messages"][-2]["content"].split("eats")[-1]) % 2 for row in rows] == [0, 0, 0]
    assert {row["provenance"]["verifier"] for row in rows} == {"even"}


def test_of_several_samples_the_accepted_ones_vote(seeds: list[Row], tmp_path: Path) -> None:
    asked = models("no", "no", "yes")
    outcome = synthesize(
        config(samples=3, temperature=0.7), seeds, asked, directory=tmp_path / "x", seed=0, verifier=even
    )
    assert "verifier" not in outcome.report["rejected"]
    rows = [json.loads(line) for line in (tmp_path / "x" / "synthetic.jsonl").read_text().splitlines()]
    assert [(row["answer"], round(row["provenance"]["agreement"], 2)) for row in rows] == [
        ("yes", 0.33),
        ("no", 0.67),
        ("yes", 0.33),
    ]


def test_a_journal_with_a_verifier_is_another_synthesis(seeds: list[Row], tmp_path: Path) -> None:
    first = synthesize(config(), seeds, models("yes"), directory=tmp_path / "x", seed=0, verifier=even)
    assert first.report["identity"]["verifier"] == "even"
    with pytest.raises(OutputError, match=r"another synthesis \(different: verifier\)"):
        synthesize(config(), seeds, models("yes"), directory=tmp_path / "x", seed=0)
    again = synthesize(config(), seeds, models("yes"), directory=tmp_path / "x", seed=0, verifier=even)
    assert again.report["rejected"] == first.report["rejected"]
