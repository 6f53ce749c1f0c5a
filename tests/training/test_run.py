"""A whole run on tiny models: what is written, and that it repeats exactly however it was interrupted."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.errors import OutputError, TrainingError
from stillhouse.preflight.check import preflight
from stillhouse.recipe import Recipe
from stillhouse.training import loop as loop_module
from stillhouse.training.loop import StageLoop
from stillhouse.training.run import train
from stillhouse.training.step import TrainStep

MakeRecipe = Callable[..., Recipe]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Send ourselves a signal while step ``step`` is being trained."""
    original = TrainStep.run
    seen = {"steps": 0}

    def run(self: TrainStep, *args: Any, **keywords: Any) -> Any:
        seen["steps"] += 1
        if seen["steps"] == step:
            os.kill(os.getpid(), number)
        return original(self, *args, **keywords)

    monkeypatch.setattr(TrainStep, "run", run)


def test_kd_lowers_the_loss_and_writes_everything(make_recipe: MakeRecipe) -> None:
    outcome = train(make_recipe(optimisation={"budget": {"steps": 12}}))
    run = outcome.directory
    assert outcome.result is not None
    headline = outcome.result["headline"]
    assert headline["student_after"] < headline["student_before"] - 0.5
    assert json.loads((run / "result.json").read_text()) == json.loads(json.dumps(outcome.result))
    steps = events(run, "step")
    assert [e["step"] for e in steps] == list(range(1, 13))
    assert [e["step"] for e in events(run, "evaluation")] == [0, 3, 6, 9, 12]
    first = steps[0]
    assert first["loss"] == pytest.approx(0.5 * first["ce"] + 0.5 * first["kd"], rel=1e-6)
    for name in ("teacher_nll", "teacher_entropy", "top1_agreement", "grad_rms_ratio", "grad_norm"):
        assert first[name] is not None
    assert set(first["domains"]) <= {"math", "greetings", "spelling"}
    assert sum(d["targets"] for d in first["domains"].values()) == first["targets"]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0] or environment["versions"]["torch"]


def test_plain_transformers_loads_the_model(make_recipe: MakeRecipe) -> None:
    run = train(make_recipe(objective={"type": "sft"})).directory
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    logits = model(**tokenizer(text, return_tensors="pt")).logits
    assert torch.isfinite(logits).all()
    assert all(not p.name.endswith((".bin", ".pt", ".pkl")) for p in run.rglob("*"))


def test_sft_pays_for_no_teacher_and_reports_no_divergence(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = train(make_recipe(objective={"type": "sft"}, teacher=None))
    assert outcome.result is not None
    assert outcome.result["headline"]["teacher"] is None
    first = events(outcome.directory, "step")[0]
    assert first["kd"] is None
    assert first["teacher_nll"] is None
    assert first["loss"] == first["ce"]


def test_the_same_recipe_twice_is_the_same_model(make_recipe: MakeRecipe) -> None:
    assert_same(weights(train(make_recipe("a")).directory), weights(train(make_recipe("b")).directory))


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_interrupted_at_any_step_and_resumed_is_bit_for_bit_the_same(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = train(make_recipe("whole")).directory
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, signal.SIGTERM if step % 2 else signal.SIGINT)
        stopped = train(make_recipe("broken"))
    assert stopped.interrupted
    assert not (stopped.directory / "result.json").exists()
    resumed = train(make_recipe("broken"))
    assert_same(weights(whole), weights(resumed.directory))
    numbers = ("step", "loss", "ce", "kd", "lr", "grad_norm", "targets", "tokens")
    trace = [[[e[n] for n in numbers] for e in events(run, "step")] for run in (whole, resumed.directory)]
    assert trace[0] == trace[1]


def test_killed_between_checkpoints_goes_on_from_the_last_one(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_recipe("whole")).directory
    original = StageLoop._one_step

    class PowerCut(BaseException):
        pass

    def one_step(self: StageLoop) -> Any:
        if self.state.step == 5:
            raise PowerCut
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(StageLoop, "_one_step", one_step)
        with pytest.raises(PowerCut):
            train(make_recipe("cut"))
    resumed = train(make_recipe("cut"))
    assert_same(weights(whole), weights(resumed.directory))
    assert [e["step"] for e in events(resumed.directory, "step")] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_named(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        run = train(make_recipe()).directory
    newest = sorted((run / "checkpoints" / "main").iterdir())[-1]
    shard = next(newest.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="damaged; delete the folder"):
        train(make_recipe())


def test_a_finished_run_is_not_overwritten(make_recipe: MakeRecipe) -> None:
    train(make_recipe())
    with pytest.raises(OutputError, match="--overwrite"):
        train(make_recipe())
    assert train(make_recipe(), overwrite=True).result is not None


def test_early_stopping_keeps_the_best_weights(make_recipe: MakeRecipe) -> None:
    evaluation = {"every_steps": 1, "early_stopping_patience": 2, "generation": {"rows": 0, "samples": 0}}
    outcome = train(make_recipe(optimisation={"budget": {"steps": 60}, "learning_rate": 0.3}, evaluation=evaluation))
    assert outcome.result is not None
    assert outcome.state.stopped_because == "early stopping"
    assert outcome.state.step < 60
    nll = {e["step"]: e["nll"] for e in events(outcome.directory, "evaluation")}
    assert outcome.state.best_step == min(nll, key=nll.__getitem__)
    assert outcome.result["headline"]["student_after"] == pytest.approx(min(nll.values()), abs=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainStep._forward_backward

    def poisoned(self: TrainStep, *arguments: Any) -> Any:
        output = original(self, *arguments)
        if len(list(run.glob("checkpoints/main/step-*"))) > 0:
            output.ce[0] = float("nan")
        return output

    recipe = make_recipe()
    run = Path(recipe.output.dir)
    monkeypatch.setattr(TrainStep, "_forward_backward", poisoned)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan.*checkpoint of step 3 is kept"):
        train(recipe)
    assert (run / "checkpoints" / "main" / "step-00000003" / "state.json").exists()


def test_old_checkpoints_are_pruned(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(checkpoints={"every_steps": 1, "keep": 2})
    run = train(recipe).directory
    assert sorted(p.name for p in (run / "checkpoints" / "main").iterdir()) == ["step-00000005", "step-00000006"]


def test_no_checkpoint_byte_is_a_pickle(make_recipe: MakeRecipe) -> None:
    run = train(make_recipe()).directory
    files = [p for p in (run / "checkpoints").rglob("*") if p.is_file()]
    assert files
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors"
            length = int.from_bytes(file.read_bytes()[:8], "little")
            json.loads(file.read_bytes()[8 : 8 + length])


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("micro_batch_tokens", [32, 4096])
def test_the_split_into_micro_batches_does_not_matter(
    make_recipe: MakeRecipe, micro_batch_tokens: int, layout: str
) -> None:
    reference = train(make_recipe("a")).directory
    split = train(make_recipe("b", optimisation={"micro_batch_tokens": micro_batch_tokens, "layout": layout})).directory
    for left, right in zip(events(reference, "step"), events(split, "step"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=2e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-4)


def test_lora_trains_adapters_and_saves_a_plain_model(make_recipe: MakeRecipe, tiny_model_dir: Path) -> None:
    pytest.importorskip("peft")
    student = {"path": str(tiny_model_dir), "lora": {"rank": 4, "dropout": 0.1}}
    whole = train(make_recipe("whole", student=student))
    assert whole.result is not None
    assert whole.result["headline"]["student_after"] < whole.result["headline"]["student_before"]
    names = set(weights(whole.directory))
    assert not any("lora" in name for name in names)
    before = load_file(tiny_model_dir / "model.safetensors")
    assert torch.equal(weights(whole.directory)["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_lora_resumes_exactly_with_dropout(
    make_recipe: MakeRecipe, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    student = {"path": str(tiny_model_dir), "lora": {"rank": 4, "dropout": 0.1}}
    whole = train(make_recipe("whole", student=student)).directory
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(make_recipe("broken", student=student))
    assert_same(weights(whole), weights(train(make_recipe("broken", student=student)).directory))


def test_gradient_checkpointing_changes_nothing(make_recipe: MakeRecipe) -> None:
    plain = train(make_recipe("a")).directory
    saved = train(make_recipe("b", optimisation={"gradient_checkpointing": True})).directory
    assert [e["loss"] for e in events(plain, "step")] == pytest.approx(
        [e["loss"] for e in events(saved, "step")], rel=1e-6
    )


def test_bfloat16_compute_keeps_float32_masters(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        optimisation={"precision": "bfloat16"}, output={"dir": make_recipe("bf").output.dir, "save_dtype": "float32"}
    )
    outcome = train(recipe)
    shards = list((outcome.directory / "checkpoints" / "main").rglob("*.safetensors"))
    tensors = {k: v for shard in shards for k, v in load_file(shard).items()}
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    saved = weights(outcome.directory)["model.norm.weight"]
    assert saved.dtype == torch.float32
    assert not torch.equal(saved, saved.bfloat16().float())
    assert outcome.result is not None
    assert outcome.result["headline"]["student_after"] < outcome.result["headline"]["student_before"]


def test_a_pruned_student_starts_from_the_teacher(make_recipe: MakeRecipe, tiny_model_dir: Path) -> None:
    student = {"type": "pruned", "depth": {"layers": 3, "method": "even"}}
    outcome = train(make_recipe(teacher={"path": str(tiny_model_dir)}, student=student))
    assert outcome.result is not None
    assert outcome.result["parameters"]["student"] < outcome.result["parameters"]["teacher"]
    initial = load_file(outcome.directory / "initial" / "model.safetensors")
    teacher = load_file(tiny_model_dir / "model.safetensors")
    kept = [0, 2, 3]  # floor(i * 3 / 2 + 1/2) for i = 0, 1, 2
    for new, old in enumerate(kept):
        name = "self_attn.q_proj.weight"
        assert torch.equal(initial[f"model.layers.{new}.{name}"], teacher[f"model.layers.{old}.{name}"])


def test_a_trimmed_vocabulary_is_distilled_through_its_id_map(
    make_recipe: MakeRecipe, tiny_model_dir: Path, tmp_path: Path
) -> None:
    student = {"type": "pruned", "vocabulary": {"min_count": 3}}
    recipe = make_recipe(teacher={"path": str(tiny_model_dir)}, student=student)
    planned = preflight(recipe, base_dir=tmp_path).student.parameters
    outcome = train(recipe)
    assert outcome.result is not None
    assert planned == outcome.result["parameters"]["student"] < outcome.result["parameters"]["teacher"]
    before, teacher = (outcome.result["headline"][k] for k in ("student_before", "teacher"))
    # Nothing but the vocabulary was cut, so on the kept ids both are one model.
    assert before == pytest.approx(teacher, abs=1e-4)
    assert events(outcome.directory, "step")[0]["kd"] == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_reads_finer_pieces_than_its_own_is_told_of(
    make_recipe: MakeRecipe, tiny_model_dir: Path, tmp_path: Path
) -> None:
    found = {}
    for min_count in (1, 5):
        teacher = {"path": str(tiny_model_dir)}
        student = {"type": "pruned", "vocabulary": {"min_count": min_count}}
        outcome = train(make_recipe(f"counted-{min_count}", teacher=teacher, student=student))
        assert outcome.result is not None
        again = make_recipe("again", teacher=teacher, student={"path": str(outcome.directory / "initial")})
        lists = (outcome.result["warnings"], preflight(again, base_dir=tmp_path).warnings)
        found[min_count] = [
            [w for w in warnings if "more tokens than its teacher's own would" in w] for warnings in lists
        ]
    assert found[1] == [[], []]
    trained, checked = found[5]
    assert len(trained) == 1
    assert trained == checked


def test_the_loop_has_one_name_for_the_reason_it_stopped(make_recipe: MakeRecipe) -> None:
    assert train(make_recipe()).state.stopped_because == "budget"
    assert loop_module.LoopState().stopped_because is None
