"""TED in a run: filters are trained first, pull the student's layers, survive an interruption and are not exported."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.errors import RecipeError, TrainingError
from stillhouse.recipe import Recipe
from stillhouse.training.run import train
from stillhouse.training.step import TrainStep
from stillhouse.training.ted import FilterTraining

MakeRecipe = Callable[..., Recipe]
TED = {"type": "ted", "filter_steps": 3, "mse_weight": 0.5}


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def same_model(one: Path, two: Path) -> bool:
    a, b = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_layers_are_pulled_and_filters_dropped(make_recipe: MakeRecipe, tiny_model_dir: Path) -> None:
    objective = {**TED, "mse_weight": 1000.0}
    settings = {"learning_rate": 1e-3, "batch_tokens": 4096, "micro_batch_tokens": 1024}  # every step sees all rows
    outcome = train(make_recipe("ted", objective=objective, optimisation=settings))
    steps = events(outcome.directory, "step")
    for step in steps:
        assert step["loss"] == pytest.approx(step["ce"] + step["kd"] + 1000 * step["mse"], rel=1e-5)
    assert steps[-1]["mse"] < 0.9 * steps[0]["mse"]
    assert outcome.result is not None
    found = outcome.result["ted"]
    # The teacher has 2 layers and the student 4, so there are 2 filters: layers 1 and 2 beside 2 and 4.
    assert (found["filters"], found["teacher_layers"], found["student_layers"]) == (2, [1, 2], [2, 4])
    assert found["last_loss"]["student"] < found["first_loss"]["student"]
    assert found["stage"] == "main"
    kept = load_file(outcome.directory / "checkpoints" / "main" / "filters.safetensors")
    assert kept["student.0.first.weight"].shape == (48, 32)  # into the teacher's width
    assert kept["teacher.1.first.weight"].shape == (48, 48)
    saved = load_file(outcome.directory / "model" / "model.safetensors")
    assert saved.keys() == load_file(tiny_model_dir / "model.safetensors").keys()


def test_without_the_mse_it_is_kd(make_recipe: MakeRecipe) -> None:
    kd = {"type": "kd", "mixing": {"type": "additive", "gamma": 1.0}, "temperature": 2.0}
    plain = train(make_recipe("kd", objective=kd, optimisation={"max_grad_norm": None}))
    ted = train(make_recipe("ted", objective={**TED, "mse_weight": 1e-12}, optimisation={"max_grad_norm": None}))
    for left, right in zip(events(plain.directory, "step"), events(ted.directory, "step"), strict=True):
        assert left["ce"] == pytest.approx(right["ce"], rel=1e-4)
        assert left["kd"] == pytest.approx(right["kd"], rel=1e-4)


@pytest.mark.parametrize(
    "change", [{"micro_batch_tokens": 32}, {"gradient_checkpointing": True}, {"layout": "packed"}], ids=str
)
def test_how_a_step_is_computed_changes_nothing(make_recipe: MakeRecipe, change: dict[str, Any]) -> None:
    settings = {"micro_batch_tokens": 256, "learning_rate": 1e-3, "budget": {"steps": 3}}
    a = train(make_recipe("a", objective=TED, optimisation=settings)).directory
    b = train(make_recipe("b", objective=TED, optimisation={**settings, **change})).directory
    for left, right in zip(events(a, "step"), events(b, "step"), strict=True):
        assert left["mse"] == pytest.approx(right["mse"], rel=1e-3)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_a_teacher_of_the_same_width_reads_by_its_own(make_recipe: MakeRecipe, tiny_model_dir: Path) -> None:
    teacher = {"path": str(tiny_model_dir)}
    outcome = train(make_recipe(objective={**TED, "filters": 3}, teacher=teacher))
    assert outcome.result is not None
    found = outcome.result["ted"]
    assert found["student_layers"] == found["teacher_layers"] == [1, 3, 4]
    # Both sides are the same model behind identical filters, which start as the identity.
    assert found["first_loss"]["student"] == pytest.approx(found["first_loss"]["teacher"], rel=1e-5)
    assert events(outcome.directory, "step")[0]["mse"] == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("step", [1, 4])
def test_interrupted_it_goes_on_bit_for_bit(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = train(make_recipe("whole", objective=TED)).directory
    original, seen = TrainStep.run, [0]

    def run(self: TrainStep, *arguments: Any, **keywords: Any) -> Any:
        seen[0] += 1
        if seen[0] == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", run)
        assert train(make_recipe("broken", objective=TED)).interrupted
    broken = train(make_recipe("broken", objective=TED)).directory
    assert same_model(whole, broken)


def test_filters_are_not_trained_twice(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after stage I and before the first checkpoint."""
    whole = train(make_recipe("whole", objective=TED)).directory

    def killed(*_arguments: Any, **_keywords: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            train(make_recipe("broken", objective=TED))
    monkeypatch.setattr(FilterTraining, "_train", killed)
    assert same_model(whole, train(make_recipe("broken", objective=TED)).directory)


def test_lost_filters_of_a_resumed_run_are_named(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainStep.run

    def run(self: TrainStep, *arguments: Any, **keywords: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", run)
        interrupted = train(make_recipe("broken", objective=TED))
    (interrupted.directory / "checkpoints" / "main" / "filters.safetensors").write_bytes(b"cut")
    with pytest.raises(TrainingError, match=r"filters\.safetensors: the filters of stage I cannot be read"):
        train(make_recipe("broken", objective=TED))


def test_other_stages_before_and_after(make_recipe: MakeRecipe) -> None:
    stages = [
        {"name": "warm", "objective": {"type": "sft"}, "optimisation": {"budget": {"steps": 2}}},
        {"name": "ted", "objective": TED, "optimizer": "continued", "optimisation": {"budget": {"steps": 2}}},
        {
            "name": "last",
            "objective": {"type": "kd"},
            "optimizer": "continued",
            "optimisation": {"budget": {"steps": 2}},
        },
    ]
    outcome = train(make_recipe(stages=stages))
    steps = events(outcome.directory, "step")
    assert [("mse" in e) for e in steps] == [False, False, True, True, False, False]
    assert outcome.result is not None
    assert outcome.result["ted"]["stage"] == "ted"


def test_filters_may_be_mlps(make_recipe: MakeRecipe) -> None:
    outcome = train(make_recipe(objective={**TED, "mlp_features": 7}))
    kept = load_file(outcome.directory / "checkpoints" / "main" / "filters.safetensors")
    assert kept["student.0.first.weight"].shape == (7, 32)
    assert kept["student.0.second.weight"].shape == (48, 7)


def test_a_mixture_may_follow_the_gap_beside_it(make_recipe: MakeRecipe) -> None:
    data = make_recipe(objective=TED).model_dump()
    data["stages"][0]["mixture"] = {"type": "ddk", "interval_steps": 3, "validation_tokens_per_domain": 30}
    data["data"]["validation_fraction"] = 0.4
    assert len(events(train(Recipe.model_validate(data)).directory, "mixture")) == 2


def test_filters_that_diverge_are_named(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(_hidden: Any, filters: torch.nn.ModuleList, _task_loss: Any) -> torch.Tensor:
        return torch.stack([p.sum() for p in filters.parameters()]).sum() * torch.nan

    monkeypatch.setattr("stillhouse.training.ted.filter_task_loss", nan)
    with pytest.raises(
        TrainingError, match=r"the teacher's filters: the loss of step 1 is nan; lower .*filter_learning"
    ):
        train(make_recipe(objective=TED))


def test_refusals(make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path) -> None:
    cached = {"path": str(tiny_teacher_dir), "source": "cache", "cache": {"dir": str(tmp_path / "c")}}
    with pytest.raises(ValueError, match=r"stages\.0\.objective\.type=ted reads the teacher's layers.*source=cache"):
        make_recipe(objective=TED, teacher=cached)
    with pytest.raises(ValueError, match=r"stages\.0\.objective\.type=ted.*parallel\.strategy: ddp"):
        make_recipe(objective=TED, parallel={"strategy": "fsdp"})
    with pytest.raises(RecipeError, match=r"objective\.filters=3: the model has only 2 layers"):
        train(make_recipe(objective={**TED, "filters": 3}))
