"""``stillhouse synthesize`` as a person meets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted import ANIMALS, INSTRUCTION, Scripted, fresh_input

from stillhouse.cli.main import main
from stillhouse.synthesis import from_recipe
from stillhouse.synthesis.run import SynthesisModels

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command in a folder with eight human rows; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("STILLHOUSE_DEBUG", raising=False)
    turns = [[{"role": "user", "content": INSTRUCTION + t}, {"role": "assistant", "content": a}] for t, a in ANIMALS]
    (tmp_path / "human.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in turns))
    recipe = {
        "teacher": {"path": "big"},
        "student": {"path": "small"},
        "data": {"train": [{"path": "human.jsonl"}], "validation_fraction": 0.1},
        "synthesis": {"dir": "made", "count": 4, "batch_size": 4, "format": {"type": "labels"}},
        "stages": [
            {"name": "warm", "objective": {"type": "sft"}, "data": {"train": [{"path": "made/synthetic.jsonl"}]}},
            {"name": "human", "objective": {"type": "sft"}},
        ],
        "output": {"dir": "runs/x"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillhouse", "synthesize", "recipe.yaml", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    return call


def serve(monkeypatch: pytest.MonkeyPatch, reply: Callable[[Any, int], str]) -> None:
    models = SynthesisModels(Scripted(reply), Scripted(lambda *_: "yes"))
    monkeypatch.setattr(from_recipe, "load_models", lambda *_: models)


def test_a_table_and_what_comes_next(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, lambda _, n: ANIMALS[1][0] if n % 2 else fresh_input(n))
    code, out, err = run("synthesis.count=3")
    assert (code, err) == (0, "")
    assert "3 of 3 rows from 7 seeds" in out
    assert "the input is a seed or an earlier input" in out
    assert "next: stillhouse train recipe.yaml" in out
    assert len((tmp_path / "made" / "synthetic.jsonl").read_text().splitlines()) == 3
    assert "stillhouse synthesize recipe.yaml synthesis.count=3" in (tmp_path / "made" / "report.html").read_text()
    # Going on asks for one row more; beginning anew is asked for.
    assert run("synthesis.count=4")[0] == 0
    code, _, err = run("synthesis.human_examples=5")
    assert (code, "add --overwrite to begin anew" in err) == (2, True)
    assert run("synthesis.human_examples=5", "--overwrite")[0] == 0


def test_rows_that_no_stage_reads_are_pointed_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, lambda _, n: fresh_input(n))
    _, out, _ = run("stages.0.data=null")
    assert "next: name the rows in a stage (`data: {train: [{path: made/synthetic.jsonl}]}`)" in out


def test_nothing_kept_is_exit_code_2_with_the_table(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, lambda *_: ANIMALS[1][0])
    code, out, err = run("synthesis.max_fruitless_batches=1")
    assert code == 2
    assert "0 of 4 rows" in out
    assert err.startswith("error: synthesis: none of 4 candidates was kept (duplicate 4)")
    assert (tmp_path / "made" / "report.html").exists()


def test_rows_for_a_writer(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--writer-rows", "writer.jsonl", "--rows-per-seed", "2", "synthesis.human_examples=3")
    assert (code, "wrote 14 rows to writer.jsonl" in out) == (0, True)
    assert len((tmp_path / "writer.jsonl").read_text().splitlines()) == 14
    assert not (tmp_path / "made").exists()


def test_a_recipe_without_synthesis(run: Run) -> None:
    code, _, err = run("synthesis=null")
    assert (code, "synthesis: the recipe has no such section" in err) == (2, True)
