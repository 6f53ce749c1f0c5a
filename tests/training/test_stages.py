"""Several stages in one run: what is taken over, what is repeated, and where a run goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.errors import DataError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.training.run import train
from stillhouse.training.step import TrainStep

MakeRecipe = Callable[..., Recipe]
SFT = {"name": "warm_up", "objective": {"type": "sft"}, "optimisation": {"budget": {"steps": 4}}}
KD = {"name": "refine", "objective": {"type": "kd"}, "optimisation": {"budget": {"steps": 4}}}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def events(run: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original, seen = TrainStep.run, [0]

    def run(self: TrainStep, *args: Any, **keywords: Any) -> Any:
        seen[0] += 1
        if seen[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **keywords)

    monkeypatch.setattr(TrainStep, "run", run)


@pytest.fixture
def extra_rows(tmp_path: Path) -> Path:
    """Rows of another file and a domain of its own."""
    path = tmp_path / "synthetic.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} it is"}]}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_second_stage_starts_from_the_first_ones_weights(make_recipe: MakeRecipe) -> None:
    alone = train(make_recipe("alone", stages=[SFT])).directory
    both = train(make_recipe("both", stages=[SFT, KD]))
    assert both.result is not None
    ends = events(alone, "evaluation")[-1], events(both.directory, "evaluation")
    start_of_second = next(e for e in ends[1] if e["stage"] == "refine" and e["step"] == 0)
    assert start_of_second["nll"] == ends[0]["nll"]
    assert [(e["stage"], e["step"]) for e in events(both.directory)] == [
        *(("warm_up", s) for s in range(1, 5)),
        *(("refine", s) for s in range(1, 5)),
    ]
    training = both.result["training"]
    assert training["steps"] == 8
    assert [(s["name"], s["objective"], s["steps"]) for s in training["stages"]] == [
        ("warm_up", "sft", 4),
        ("refine", "kd", 4),
    ]
    assert not same(alone, both.directory)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_interrupted_inside_or_between_stages_it_resumes_bit_for_bit(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = train(make_recipe("whole", stages=[SFT, KD])).directory
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        first = train(make_recipe("broken", stages=[SFT, KD]))
    assert first.interrupted == (step != 4)  # at the last step of a stage there is nothing left to stop
    resumed = first if not first.interrupted else train(make_recipe("broken", stages=[SFT, KD]))
    assert same(whole, resumed.directory)
    numbers = ("stage", "step", "loss", "lr", "tokens", "grad_norm")
    traces = [[[e[n] for n in numbers] for e in events(run)] for run in (whole, resumed.directory)]
    assert traces[0] == traces[1]


def test_killed_between_stages_it_does_not_repeat_the_first(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_recipe("whole", stages=[SFT, KD])).directory

    class PowerCut(BaseException):
        pass

    def cut(*_: Any, **__: Any) -> Any:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.training.stage._take_over", lambda c, s, t, earlier: cut() if earlier else None)
        with pytest.raises(PowerCut):
            train(make_recipe("cut", stages=[SFT, KD]))
    steps = []
    with monkeypatch.context() as patch:
        original = TrainStep.run
        patch.setattr(TrainStep, "run", lambda self, *a, **k: (steps.append(1), original(self, *a, **k))[1])
        resumed = train(make_recipe("cut", stages=[SFT, KD])).directory
    assert len(steps) == 4
    assert same(whole, resumed)


def test_a_continued_optimizer_is_not_a_fresh_one(make_recipe: MakeRecipe) -> None:
    fresh = train(make_recipe("fresh", stages=[SFT, KD])).directory
    continued = train(make_recipe("continued", stages=[SFT, {**KD, "optimizer": "continued"}])).directory
    assert events(fresh)[4]["loss"] == events(continued)[4]["loss"]  # the same weights
    assert events(fresh)[6]["loss"] != events(continued)[6]["loss"]  # and other moments


def test_the_best_weights_go_on_under_early_stopping(make_recipe: MakeRecipe) -> None:
    # A rate that only harms: the start stays the best, so the second stage begins where the first did.
    harmful = {**SFT, "optimisation": {"budget": {"steps": 4}, "learning_rate": 3.0, "max_grad_norm": None}}
    evaluation = {"every_steps": 1, "early_stopping_patience": 4, "generation": {"rows": 0, "samples": 0}}
    run = train(make_recipe("harm", stages=[harmful, KD], evaluation=evaluation)).directory
    evaluations = events(run, "evaluation")
    start = next(e for e in evaluations if e["stage"] == "refine" and e["step"] == 0)
    assert start["nll"] == min(e["nll"] for e in evaluations if e["stage"] == "warm_up")


def test_a_stage_with_rows_of_its_own(make_recipe: MakeRecipe, extra_rows: Path) -> None:
    own = {**SFT, "data": {"train": [{"path": str(extra_rows), "domain": "invented"}]}}
    outcome = train(make_recipe("own", stages=[own, KD]))
    assert outcome.result is not None
    assert set().union(*(e["domains"] for e in events(outcome.directory) if e["stage"] == "warm_up")) == {"invented"}
    assert "invented" not in set().union(*(e["domains"] for e in events(outcome.directory) if e["stage"] == "refine"))
    assert outcome.result["data"]["train of warm_up"]["documents"] == 20
    assert "invented" not in outcome.result["evaluation"]["student_after"]["domains"]


def test_an_empty_stage_is_refused_or_skipped(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """X -> H with an empty X is H alone, for the same seed (methods.md, section 9)."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    source = {"train": [{"path": str(empty)}]}
    with pytest.raises(DataError, match="the file is empty"):
        train(make_recipe("refused", stages=[{**SFT, "data": source}, KD]))
    skipped = train(make_recipe("skipped", stages=[{**SFT, "data": {**source, "when_empty": "skip"}}, KD]))
    alone = train(make_recipe("alone", stages=[KD])).directory
    assert skipped.result is not None
    assert "stage warm_up was skipped: no document to train on" in skipped.result["warnings"]
    assert same(alone, skipped.directory)


def test_held_out_prompts_are_dropped_from_a_stages_rows(
    make_recipe: MakeRecipe, chat_jsonl: Path, extra_rows: Path
) -> None:
    """A stage that names the very file from which validation rows were split off does not train on them."""
    own = {**SFT, "data": {"train": [{"path": str(chat_jsonl)}]}}
    outcome = train(make_recipe("leak", stages=[own]))
    assert outcome.result is not None
    data = outcome.result["data"]
    assert data["train of warm_up"]["leaked_into_evaluation"] >= data["validation"]["documents"] > 0
    assert data["train of warm_up"]["documents"] == data["train"]["documents"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([SFT, SFT], r"stages\.1\.name=warm_up: an earlier stage has this name"),
        ([{**SFT, "optimizer": "continued"}], r"stages\.0\.optimizer=continued: there is no stage before"),
    ],
)
def test_stages_that_cannot_follow_each_other(
    make_recipe: MakeRecipe, stages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises((RecipeError, ValueError), match=message):
        make_recipe(stages=stages)
