"""The page on a synthetic set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripted import Scripted, fresh_input

from stillhouse.data.rows import Row
from stillhouse.errors import OutputError
from stillhouse.recipe import SynthesisConfig
from stillhouse.report.synthesis import render_synthesis
from stillhouse.synthesis.run import SynthesisModels, synthesize

ATTACK = "</script><script>alert(1)</script> <img src=x>"


def visible(page: Path) -> str:
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def make(seeds: list[Row], folder: Path, say: str = "") -> Path:
    config = SynthesisConfig.model_validate(
        {"dir": "x", "count": 4, "format": {"type": "labels"}, "batch_size": 6, "filters": {"nll_tail": 0}}
    )
    writer = Scripted(
        lambda _, n: seeds[0].contents[0][-30:] if n % 3 == 2 else fresh_input(n) + (say if n == 0 else "")
    )
    models = SynthesisModels(writer, Scripted(lambda _, n: "perhaps" if n == 1 else "yes"))
    synthesize(config, seeds, models, directory=folder, seed=0)
    return render_synthesis(folder, "stillhouse synthesize mine.yaml count=4")


def test_what_was_kept_and_why_the_rest_was_not(seeds: list[Row], tmp_path: Path) -> None:
    text = visible(make(seeds, tmp_path / "x"))
    assert "4 new rows in the manner of 8 human ones: 0.50 for each, 0.50 were wanted." in text
    assert "answer_format the answer does not have the format 1" in text
    assert "not a label of the set" in text
    assert fresh_input(0) in text
    assert "Vendi score" in text
    assert "stillhouse synthesize mine.yaml count=4" in text
    assert "there are no evaluation rows" in text


def test_generated_markup_stays_text(seeds: list[Row], tmp_path: Path) -> None:
    page = make(seeds, tmp_path / "x", say=" " + ATTACK).read_text(encoding="utf-8")
    assert "&lt;img src=x&gt;" in page
    assert "<img src=x" not in page
    assert "<script>alert" not in page


def test_a_folder_without_a_synthesis(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no synthesis_report\.json"):
        render_synthesis(tmp_path)
