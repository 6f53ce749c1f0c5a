"""Training from a cache: the same losses as the live teacher where the codec allows, and refusals before training."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from stillhouse.errors import DataError, ModelError, OutputError, RecipeError
from stillhouse.preflight.check import preflight
from stillhouse.recipe import Recipe, TeacherConfig
from stillhouse.training import cached as cached_module
from stillhouse.training import evaluating
from stillhouse.training import run as run_module
from stillhouse.training.cached import CapturePlan, capture_recipe, plan_capture
from stillhouse.training.run import train

MakeRecipe = Callable[..., Recipe]
EVERYTHING = {"type": "topk_ghost", "k": 4096, "value_bits": 16}


def teacher(folder: Path, cache: Path, **codec: Any) -> dict[str, Any]:
    return {"path": str(folder), "source": "cache", "cache": {"dir": str(cache), "codec": codec or EVERYTHING}}


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def fill(recipe: Recipe) -> CapturePlan:
    plans: list[CapturePlan] = []
    capture_recipe(recipe, base_dir=Path(), announce=plans.append)
    return plans[0]


def test_a_cache_of_everything_trains_as_the_live_teacher(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    live = train(make_recipe("live")).directory
    recipe = make_recipe("cached", teacher=teacher(tiny_teacher_dir, tmp_path / "targets"))
    fill(recipe)
    cached = train(recipe).directory
    for left, right in zip(steps(live), steps(cached), strict=True):
        # 16-bit values of log-probabilities: the loss differs in the fourth digit.
        for name in ("loss", "ce", "kd", "teacher_nll", "teacher_entropy"):
            assert left[name] == pytest.approx(right[name], rel=2e-3), name
        assert left["top1_agreement"] == right["top1_agreement"]


def test_a_second_capture_adds_only_what_is_missing(
    make_recipe: MakeRecipe,
    tiny_teacher_dir: Path,
    chat_jsonl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = {"train": [{"path": str(chat_jsonl), "limit": 12}], "validation_fraction": 0.2, "max_seq_len": 64}
    first = fill(make_recipe(teacher=teacher(tiny_teacher_dir, tmp_path / "targets"), data=some))
    rest = fill(make_recipe(teacher=teacher(tiny_teacher_dir, tmp_path / "targets")))
    monkeypatch.setattr(cached_module, "verify_head", None)  # no teacher is loaded where nothing is missing
    again = fill(make_recipe(teacher=teacher(tiny_teacher_dir, tmp_path / "targets")))
    assert first.documents > 0
    assert rest.documents > 0
    assert again.documents == 0


def test_students_of_many_seeds_share_a_cache(make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path) -> None:
    cached = teacher(tiny_teacher_dir, tmp_path / "targets", type="sampled", draws=20)
    fill(make_recipe(teacher=cached))
    for seed in (1, 2):
        assert train(make_recipe(f"seed-{seed}", teacher=cached, seed=seed)).result is not None


def test_what_is_missing_or_changed_is_named_before_training(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, chat_jsonl: Path, tmp_path: Path
) -> None:
    place = tmp_path / "targets"
    with pytest.raises(DataError, match="stillhouse capture"):
        train(make_recipe("none", teacher=teacher(tiny_teacher_dir, place)))
    some = {"train": [{"path": str(chat_jsonl), "limit": 12}], "validation_fraction": 0.2, "max_seq_len": 64}
    fill(make_recipe(teacher=teacher(tiny_teacher_dir, place), data=some))
    with pytest.raises(DataError, match="are not in the cache"):
        train(make_recipe("missing", teacher=teacher(tiny_teacher_dir, place)))
    fill(make_recipe(teacher=teacher(tiny_teacher_dir, place)))
    with pytest.raises(RecipeError, match=r"teacher\.cache\.codec"):
        train(make_recipe("codec", teacher=teacher(tiny_teacher_dir, place, type="sampled")))
    shard = next(place.rglob("*.safetensors"), None) or next(
        p for p in place.rglob("*") if p.is_file() and p.suffix != ".json"
    )
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=shard.stem):
        train(make_recipe("flipped", teacher=teacher(tiny_teacher_dir, place)))


def test_a_stale_teacher_is_named(make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in tiny_teacher_dir.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    fill(make_recipe(teacher=teacher(changed, tmp_path / "targets")))
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="another teacher"):
        train(make_recipe("stale", teacher=teacher(changed, tmp_path / "targets")))


@pytest.mark.parametrize(
    ("objective", "codec", "expected"),
    [
        ({"divergence": {"type": "reverse_kl"}}, {"type": "topk"}, r"divergence\.type=reverse_kl.*codec\.type=topk"),
        ({"divergence": {"type": "jsd"}}, {"type": "sampled"}, r"divergence\.type=jsd.*codec\.type=sampled"),
        (
            {"temperature": 2.0},
            {"type": "topk_ghost"},
            r"temperature=2\.0 differs from teacher\.cache\.temperature=1\.0",
        ),
    ],
)
def test_what_sparse_targets_cannot_serve_is_refused_in_the_recipe(
    make_recipe: MakeRecipe, tmp_path: Path, objective: dict[str, Any], codec: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        make_recipe(objective={"type": "kd", **objective}, teacher=teacher(tmp_path, tmp_path / "c", **codec))


def test_source_and_cache_belong_together(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong together"):
        make_recipe(teacher={"path": "x", "source": "cache"})
    with pytest.raises(RecipeError, match="names no cache"):
        capture_recipe(make_recipe(), base_dir=tmp_path, announce=lambda plan: None)


def test_a_trimmed_vocabulary_cannot_be_captured_before_its_run(
    make_recipe: MakeRecipe, tiny_model_dir: Path, tmp_path: Path
) -> None:
    student = {"type": "pruned", "vocabulary": {"min_count": 1}}
    with pytest.raises(RecipeError, match=r"student\.vocabulary"):
        fill(make_recipe(student=student, teacher=teacher(tiny_model_dir, tmp_path / "targets")))


# --- before training, and on another machine -----------------------------------------------------


@pytest.fixture
def tokenizer_dir(tiny_teacher_dir: Path, tmp_path: Path) -> Path:
    """What a student's machine may have of the teacher."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for file in tiny_teacher_dir.iterdir():
        if "token" in file.name or "template" in file.name:
            shutil.copy(file, folder)
    return folder


def test_the_cache_is_checked_for_all_stages_before_anything_is_measured(
    make_recipe: MakeRecipe,
    tiny_teacher_dir: Path,
    chat_jsonl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = teacher(tiny_teacher_dir, tmp_path / "targets")
    some = {"train": [{"path": str(chat_jsonl), "limit": 12}], "validation_fraction": 0.2, "max_seq_len": 64}
    fill(make_recipe(teacher=cached, data=some))
    monkeypatch.setattr(run_module, "Evaluator", None)
    stages = [{"name": "first", "objective": {"type": "sft"}}, {"name": "second", "objective": {"type": "kd"}}]
    with pytest.raises(DataError, match="are not in the cache"):
        train(make_recipe(teacher=cached, stages=stages))


def test_the_weights_need_not_be_where_the_student_is(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    place = tmp_path / "targets"
    fill(make_recipe(teacher=teacher(tiny_teacher_dir, place)))
    away = teacher(tokenizer_dir, place)
    text = io.StringIO()
    first = train(make_recipe("first", teacher=away), console=Console(file=text, width=200)).result
    assert first is not None
    assert "the teacher's weights are not here" in text.getvalue()
    assert first["headline"]["teacher"] is first["headline"]["gap_closed"] is None
    assert any("the teacher was not measured" in warning for warning in first["warnings"])
    assert first["parameters"]["teacher"] > 0
    # What a run with the weights has measured is known from then on.
    live = train(make_recipe("live", teacher={"path": str(tiny_teacher_dir)})).result
    second = train(make_recipe("second", teacher=away)).result
    assert live is not None
    assert second is not None
    assert second["headline"]["student_after"] == first["headline"]["student_after"]
    assert second["evaluation"]["teacher"] == live["evaluation"]["teacher"]
    assert not any("the teacher was not measured" in warning for warning in second["warnings"])


def test_what_needs_the_weights_says_so(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, tokenizer_dir: Path, chat_jsonl: Path, tmp_path: Path
) -> None:
    place = tmp_path / "targets"
    some = {"train": [{"path": str(chat_jsonl), "limit": 12}], "validation_fraction": 0.2, "max_seq_len": 64}
    fill(make_recipe(teacher=teacher(tiny_teacher_dir, place), data=some))
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        fill(make_recipe(teacher=teacher(tokenizer_dir, place)))
    stage = {"objective": {"type": "kd"}, "mixture": {"type": "ddk"}}
    with pytest.raises(ModelError, match=r"stages\.0\.mixture\.type=ddk measures the teacher"):
        train(make_recipe("ddk", teacher=teacher(tokenizer_dir, place), stages=[stage]))


def test_a_shared_measurement_needs_no_loaded_teacher(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = teacher(tiny_teacher_dir, tmp_path / "targets")
    fill(make_recipe(teacher=cached))
    first = train(make_recipe("first", teacher=cached)).result
    real, loaded = evaluating.load_model, []

    def watched(config: Any, **more: Any) -> Any:
        loaded.append(config)
        return real(config, **more)

    monkeypatch.setattr(evaluating, "load_model", watched)
    second = train(make_recipe("second", teacher=cached)).result
    assert first is not None
    assert second is not None
    assert second["headline"]["teacher"] == first["headline"]["teacher"]
    assert not any(isinstance(config, TeacherConfig) for config in loaded)


def test_the_precision_of_the_capture_is_the_caches(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    cached = teacher(tiny_teacher_dir, tmp_path / "targets")
    fill(make_recipe(teacher=cached, optimisation={"precision": "bfloat16"}))
    manifest = json.loads((tmp_path / "targets" / "manifest.json").read_text())
    assert manifest["teacher_dtype"] == "bfloat16"
    assert train(make_recipe(teacher=cached)).result is not None  # the student's is float32
    with pytest.raises(RecipeError, match=r"teacher\.dtype=float32: the cache was captured with bfloat16"):
        train(make_recipe("asked", teacher={**cached, "dtype": "float32"}))


def test_validate_knows_the_cache(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, chat_jsonl: Path, tmp_path: Path
) -> None:
    cached = teacher(tiny_teacher_dir, tmp_path / "targets")

    def lacks() -> list[str]:
        report = preflight(make_recipe(teacher=cached), base_dir=tmp_path)
        assert report.teacher is None  # neither memory nor time
        return [warning for warning in report.warnings if "stillhouse capture" in warning]

    assert "no targets are there yet" in lacks()[0]
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    data = {"train": [{"path": str(chat_jsonl)}], "validation_fraction": 0.2, "max_seq_len": 64}
    fill(make_recipe(teacher=cached, data={**data, "chat_template": str(template)}))
    assert "documents have no targets yet. The chat template is another one" in lacks()[0]
    with pytest.raises(DataError, match="The chat template is another one than at the first capture"):
        train(make_recipe(teacher=cached))
    fill(make_recipe(teacher=cached))
    assert lacks() == []
    with pytest.raises(RecipeError, match=r"teacher\.cache\.codec"):
        preflight(
            make_recipe(teacher=teacher(tiny_teacher_dir, tmp_path / "targets", type="sampled")), base_dir=tmp_path
        )


def test_a_small_disk_is_refused_before_anything_is_started(
    make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(teacher=teacher(tiny_teacher_dir, tmp_path / "targets"))
    monkeypatch.setattr(cached_module, "load_model", None)
    plans: list[CapturePlan] = []
    usage = shutil.disk_usage(tmp_path)
    # Room for half of it, as each of two workers would ask for.
    monkeypatch.setattr(cached_module, "estimate_bytes", lambda *_, **__: 2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1500))
    with pytest.raises(OutputError, match="the disk has"):
        capture_recipe(recipe, base_dir=tmp_path, announce=plans.append)
    assert plans
    with pytest.raises(OutputError, match="the disk has"):
        plan_capture(recipe, tmp_path)
