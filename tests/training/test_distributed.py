"""Two processes follow one: the same documents in the same order, whatever is sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.recipe import Recipe
from stillhouse.recipe_io import dump_recipe
from stillhouse.training.run import train

MakeRecipe = Callable[..., Recipe]

SCRIPT = """
import sys
from pathlib import Path
from stillhouse.recipe_io import load_recipe
from stillhouse.training import run, step

stop_after = int(sys.argv[2])
if stop_after:  # a signal that reaches one rank only
    import os, signal
    original = step.TrainStep.run
    seen = [0]
    def counted(self, *arguments, **keywords):
        seen[0] += 1
        if seen[0] == stop_after and os.environ.get("RANK", "0") == os.environ.get("SIGNALLED", "0"):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **keywords)
    step.TrainStep.run = counted
run.train(load_recipe(Path(sys.argv[1])))
"""


def launch(recipe: Recipe, tmp_path: Path, processes: int, stop_after: int = 0) -> None:
    """Run a recipe under torchrun (or plainly, for one process) in a process of its own."""
    name = Path(recipe.output.dir).name
    (tmp_path / f"{name}.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(tmp_path / "script.py"), str(tmp_path / f"{name}.yaml"), str(stop_after)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SIGNALLED": "1" if processes > 1 else "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def assert_follows(one: Path, two: Path) -> None:
    for left, right in zip(events(one, "step"), events(two, "step"), strict=True):
        assert left["targets"] == right["targets"]
        for name in ("loss", "ce", "kd", "teacher_nll", "grad_norm", "grad_rms_ratio"):
            if left[name] is None:
                assert right[name] is None, (left["step"], name)
            else:
                assert left[name] == pytest.approx(right[name], rel=2e-4), (left["step"], name)
    for left, right in zip(events(one, "evaluation"), events(two, "evaluation"), strict=True):
        assert left["nll"] == pytest.approx(right["nll"], rel=2e-4)
    a, b = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_follow_one(make_recipe: MakeRecipe, tmp_path: Path, strategy: str) -> None:
    one = train(make_recipe("one", optimisation={"learning_rate": 1e-3})).directory
    launch(
        make_recipe("two", optimisation={"learning_rate": 1e-3}, parallel={"strategy": strategy}), tmp_path, processes=2
    )
    assert_follows(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_run_resumes_on_another_number_of_processes(
    make_recipe: MakeRecipe, tmp_path: Path, strategy: str, first: int, second: int
) -> None:
    settings = {"optimisation": {"learning_rate": 1e-3}, "parallel": {"strategy": strategy}}
    whole = train(make_recipe("whole", **settings)).directory
    moved = make_recipe("moved", **settings)
    launch(moved, tmp_path, processes=first, stop_after=4)
    assert not (tmp_path / "moved" / "result.json").exists()
    launch(moved, tmp_path, processes=second)
    assert_follows(whole, tmp_path / "moved")


@pytest.mark.slow
def test_a_mixture_follows_the_gap_on_two_processes_as_on_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Measured on two, stopped inside the second interval, and gone on with on one."""
    mixture = {"type": "ddk", "interval_steps": 2, "validation_tokens_per_domain": 30}

    def recipe(name: str) -> Recipe:
        data = make_recipe(name, optimisation={"learning_rate": 1e-3}).model_dump()
        data["stages"][0]["mixture"] = mixture
        data["data"]["validation_fraction"] = 0.4
        return Recipe.model_validate(data)

    one = train(recipe("one")).directory
    launch(recipe("two"), tmp_path, processes=2)
    launch(recipe("moved"), tmp_path, processes=2, stop_after=3)
    assert not (tmp_path / "moved" / "result.json").exists()
    launch(recipe("moved"), tmp_path, processes=1)
    for other in (tmp_path / "two", tmp_path / "moved"):
        assert_follows(one, other)
        for left, right in zip(events(one, "mixture"), events(other, "mixture"), strict=True):
            assert left["step"] == right["step"]
            for name, row in left["domains"].items():
                assert row["ratio"] == pytest.approx(right["domains"][name]["ratio"], rel=2e-4)
                assert row["weight"] == pytest.approx(right["domains"][name]["weight"], rel=2e-4)
                assert row["documents"] == right["domains"][name]["documents"]


@pytest.mark.slow
def test_a_sharded_teacher_says_the_same(make_recipe: MakeRecipe, tmp_path: Path, tiny_teacher_dir: Path) -> None:
    one = train(make_recipe("one", optimisation={"learning_rate": 1e-3})).directory
    teacher = {"path": str(tiny_teacher_dir), "placement": "sharded"}
    launch(make_recipe("two", optimisation={"learning_rate": 1e-3}, teacher=teacher), tmp_path, processes=2)
    assert_follows(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_write_the_answers_that_one_writes(
    make_recipe: MakeRecipe, tmp_path: Path, strategy: str
) -> None:
    """On-policy, after a first stage: batches are shared out, sharded students generate in lock-step."""
    stages = [
        {"name": "first", "objective": {"type": "sft"}, "optimisation": {"budget": {"steps": 2}}},
        {
            "name": "second",
            "objective": {
                "type": "gkd",
                "on_policy_fraction": 0.7,
                "buffer_steps": 2,
                "rollout": {"max_new_tokens": 6, "temperature": 0.9, "batch_tokens": 64},
            },
        },
    ]
    settings = {"optimisation": {"learning_rate": 1e-3}, "stages": stages}
    one = train(make_recipe("one", **settings)).directory
    launch(make_recipe("two", **settings, parallel={"strategy": strategy}), tmp_path, processes=2)
    assert any(e.get("on_policy") for e in events(one, "step"))
    assert_follows(one, tmp_path / "two")
