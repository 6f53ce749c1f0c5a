"""``stillhouse study`` and ``compare`` as a person meets them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import SFT, WriteStudy

from stillhouse.cli.main import main
from stillhouse.cli.study import CompareOptions, comparison
from stillhouse.preflight.check import preflight
from stillhouse.recipe_io import load_recipe
from stillhouse.study.config import StudyConfig

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Call the command line in an empty directory; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STILLHOUSE_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "160")

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


def test_a_dry_run_prints_plan_and_time_and_writes_nothing(
    command: Command, write_study: WriteStudy, tmp_path: Path
) -> None:
    code, out, _ = command("study", str(write_study()), "--dry-run")
    assert code == 0
    assert "tiny: 4 cells; 0 runs done, 0 failed, 4 to do" in out
    assert "4 runs x " in out
    assert "(estimated, training alone), 1 at a time" in out
    assert [line for line in out.splitlines() if line.startswith("runs/")] == [
        "runs/kd-seed0", "runs/sft-seed0", "runs/kd-seed1", "runs/sft-seed1",
    ]  # fmt: skip
    assert not (tmp_path / "study").exists()


def test_a_wrong_study_is_one_message_and_nothing_is_started(
    command: Command, write_study: WriteStudy, tmp_path: Path
) -> None:
    code, _, err = command("study", str(write_study(axes={"x": {"a": {"stages.0.objectiv": 1}}})))
    assert code == 2
    assert "axes.x.a: stages.0.objectiv: unknown key. Did you mean 'objective'?" in err
    code, _, err = command("study", str(write_study(axes={"x": {"a": {"data.train.0.path": "nowhere.jsonl"}}})))
    assert code == 2
    assert "x=a, seed 0: " in err
    assert "nowhere.jsonl: no such file" in err
    assert not list((tmp_path / "study").rglob("recipe.yaml"))


def test_compare_writes_a_study_runs_it_and_prints_paired_gains(
    command: Command, write_study: WriteStudy, tmp_path: Path
) -> None:
    write_study()  # for its base recipe
    arguments = ("compare", "base.yaml", "--methods", "sft,kd", "--seeds", "0,1", "--output", "out/both", "--jobs", "1")
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert "NLL gain over sft, nats/token, paired by seed" in out
    assert "report:  out/both/report.html" in out.replace(f"{tmp_path}/", "")
    page = (tmp_path / "out/both/report.html").read_text(encoding="utf-8")
    assert "stillhouse study out/both/study.yaml" in page
    assert "figure-gains-0" in page
    file = tmp_path / "out" / "both" / "study.yaml"
    config = StudyConfig.from_yaml(file)
    assert (config.base, config.seeds, list(config.axes["method"])) == ("../../base.yaml", (0, 1), ["sft", "kd"])
    result = json.loads((file.parent / "study_result.json").read_text())
    nll = {(row["labels"]["method"], row["seed"]): row["result"]["nll"] for row in result["rows"]}
    gain = json.loads((file.parent / "analysis.json").read_text())["gains"][0]
    expected = [nll["sft", seed] - nll["kd", seed] for seed in (0, 1)]
    assert gain["difference"]["mean"] == pytest.approx(sum(expected) / 2)
    # The same command, and `study` with the file, find everything done.
    for again in (arguments, ("study", str(file))):
        code, out, _ = command(*again)
        assert code == 0
        assert "4 runs done, 0 failed, 0 to do" in out
    # Another baseline repeats nothing either, and the study's file stays as it is.
    code, out, _ = command(*arguments, "--baseline", "kd")
    assert code == 0
    assert "NLL gain over kd" in out
    assert "4 runs done, 0 failed, 0 to do" in out
    assert json.loads((file.parent / "analysis.json").read_text())["baseline"] == "kd"
    assert json.loads((file.parent / "study_result.json").read_text())["baseline"] == "kd"
    assert StudyConfig.from_yaml(file).baseline is None
    edited = yaml.safe_load(file.read_text())
    edited["seeds"] = [0]
    file.write_text(yaml.safe_dump(edited))
    code, _, err = command(*arguments)
    assert code == 2
    assert "another study is here" in err


def test_compare_counts_the_steps_of_a_recipe_in_epochs(
    command: Command, write_study: WriteStudy, tmp_path: Path
) -> None:
    write_study(train={"epochs": 20})
    arguments = ("compare", "base.yaml", "--methods", "sft,kd,equal", "--seeds", "0", "--output", "out")
    code, out, err = command(*arguments, "--dry-run")
    assert (code, err) == (0, "")
    assert "counting the training tokens" in out
    mixture = StudyConfig.from_yaml(tmp_path / "out" / "study.yaml").axes["method"]["equal"]["stages.*.mixture"]
    recipe = load_recipe(tmp_path / "base.yaml")
    tokens = preflight(recipe, base_dir=tmp_path).data["train"]["tokens"]
    # Steps of 128 tokens; a tenth of them is an interval.
    assert mixture == {"type": "equal", "interval_steps": math.ceil(20 * tokens / 128) // 10}
    # So does DDK, whose measurements on so few held-out rows the preflight would refuse.
    ddk = comparison(tmp_path / "base.yaml", CompareOptions("sft,kd,ddk", "0", None), tmp_path / "other")
    assert ddk.axes["method"]["ddk"]["stages.*.mixture"] == {**mixture, "type": "ddk"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "sft,kdd"), "--methods kdd: unknown"),
        (("--methods", ","), "--methods: name at least one"),
        (("--seeds", "0,x"), "--seeds 0,x: expected whole numbers"),
        (("--seeds", "0,0"), "a seed stands twice"),
        (("--baseline", "ddk"), "baseline=ddk: no such label on the method's axis; it has sft, kd."),
    ],
)
def test_wrong_options_of_compare_are_named(
    command: Command, write_study: WriteStudy, tmp_path: Path, options: tuple[str, str], message: str
) -> None:
    write_study()
    code, _, err = command("compare", "base.yaml", "--output", "out", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_study_with_a_failed_run_ends_with_code_1_and_says_how_to_go_on(
    command: Command, write_study: WriteStudy, tmp_path: Path
) -> None:
    # The preflight reads the data; what it does not see is a learning rate that blows up.
    wild = {**SFT, "stages.0.optimisation.learning_rate": 1e30, "stages.0.optimisation.max_grad_norm": None}
    file = write_study(axes={"x": {"wild": wild}}, seeds=[0])
    code, out, _ = command("study", str(file))
    assert code == 1
    assert "failed  runs/wild-seed0: step" in out
    assert "1 runs failed; `stillhouse study" in out
    kept = StudyConfig.from_yaml(tmp_path / "study/study.yaml")
    assert kept == StudyConfig.from_yaml(file).model_copy(update={"base": "../base.yaml"})
    assert "No run of this study has finished yet." in (tmp_path / "study/report.html").read_text(encoding="utf-8")
