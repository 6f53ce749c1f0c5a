"""``stillhouse evaluate`` and ``lm-eval`` as a person meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.evaluate import parse_metrics
from stillhouse.cli.main import main
from stillhouse.errors import DataError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command line in an empty directory; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STILLHOUSE_DEBUG", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillhouse", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    return call


def test_scores_samples_and_a_comparison(run: Run, tiny_model_dir: Path, chat_jsonl: Path) -> None:
    common = ("evaluate", str(tiny_model_dir), str(chat_jsonl), "--limit-per-domain", "2", "--max-new-tokens", "4")
    code, out, _ = run(*common, "--generate", "4", "-o", "numbers.json", "--samples-out", "samples.jsonl")
    assert code == 0
    assert "exact_match" in out
    assert "95 % interval" in out
    assert "nothing about another training run" in " ".join(out.split())
    numbers = json.loads(Path("numbers.json").read_text())
    assert numbers["scores"]["exact_match"]["n"] == 4
    assert set(numbers["scores"]) == {"exact_match", "token_ece"}
    samples = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    assert all(set(s["scores"]) == {"exact_match"} and isinstance(s["generation"], str) for s in samples)
    code, out, _ = run(*common, "--generate", "4", "--metrics", "exact_match", "--compare-with", "samples.jsonl")
    assert code == 0
    assert "on the same rows" in " ".join(out.split())
    assert "+0.000 to +0.000" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "exact_mach"), "'exact_mach' is not known; give auto, or some of exact_match"),
        (("--metrics", "code"), "`code` runs what the model wrote; add --execute-code"),
        (("--metrics", "rouge_l,ifeval"), "the metric ifeval was asked for, and no row has"),
    ],
)
def test_mistakes(options: tuple[str, ...], message: str, run: Run, tiny_model_dir: Path, chat_jsonl: Path) -> None:
    code, _, err = run("evaluate", str(tiny_model_dir), str(chat_jsonl), *options)
    assert code == 2
    assert message in err


def test_names_are_parsed() -> None:
    assert parse_metrics("auto", execute_code=False) == "auto"
    assert parse_metrics("chrf, rouge_l", execute_code=False) == ("chrf", "rouge_l")
    assert parse_metrics("code", execute_code=True) == ("code",)
    with pytest.raises(DataError, match="'' is not known"):
        parse_metrics("chrf,", execute_code=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_task_of_the_harness(run: Run, tiny_model_dir: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Is it?\nAnswer Yes or No."}, {"role": "assistant", "content": "Yes"}]
    row = {"messages": turns, "choices": ["Yes", "No"], "answer": "Yes"}
    (tmp_path / "boolq.jsonl").write_text(json.dumps(row) + "\n")
    tasks = ("lm-eval", str(tiny_model_dir), "--tasks", "local_boolq")
    code, out, _ = run(*tasks, "--data-dir", str(tmp_path), "-o", "found.json")
    assert code == 0
    assert "local_boolq" in out
    found = json.loads(Path("found.json").read_text())
    assert found["results"]["local_boolq"]["acc,none"] in (0, 1)
    code, _, err = run(*tasks)
    assert code == 2
    assert "say where they are with --data-dir" in err
