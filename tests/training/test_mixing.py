"""Mixtures inside a run: weights follow the student, and an interrupted interval goes on with the identical plan."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillhouse.errors import DataError, RecipeError
from stillhouse.models.load import load_tokenizer
from stillhouse.preflight.check import preflight
from stillhouse.recipe import Recipe
from stillhouse.training.evaluating import Evaluator
from stillhouse.training.loop import StageLoop
from stillhouse.training.mixing import HeldOutSplit, split_held_out
from stillhouse.training.models import load_data
from stillhouse.training.run import train
from stillhouse.training.step import TrainStep

MakeRecipe = Callable[..., Recipe]
DDK = {"type": "ddk", "interval_steps": 2, "validation_tokens_per_domain": 30}


def mixed(make_recipe: MakeRecipe, name: str, mixture: dict[str, Any], **changes: Any) -> Recipe:
    """The tiny recipe with a mixture in its stage."""
    data = make_recipe(name, **changes).model_dump()
    data["stages"][0]["mixture"] = mixture
    data["data"] = {**data["data"], "validation_fraction": 0.4}
    return Recipe.model_validate(data)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def weights(event: dict[str, Any]) -> dict[str, float]:
    return {name: row["weight"] for name, row in event["domains"].items()}


def test_ddk_draws_what_the_ratios_say(make_recipe: MakeRecipe) -> None:
    outcome = train(mixed(make_recipe, "ddk", DDK))
    intervals = events(outcome.directory, "mixture")
    assert [e["step"] for e in intervals] == [0, 2, 4]
    names = list(intervals[0]["domains"])
    ratios = [np.array([e["domains"][n]["ratio"] for n in names]) for e in intervals]
    drawn = [np.array([weights(e)[n] for n in names]) for e in intervals]
    # r_0 is Eq. 1; the first interval itself is drawn by the training tokens.
    carried = np.exp(ratios[0]) / np.exp(ratios[0]).sum()
    for ratio, weight in zip(ratios[1:], drawn[1:], strict=True):
        psi = carried * np.exp(ratio)  # Eq. 2
        carried = 0.5 * psi / psi.sum() + 0.5 / len(names)
        assert weight == pytest.approx(carried, rel=1e-6)
    assert outcome.result is not None
    assert outcome.result["mixture"]["predicted_overhead"] > 0
    assert outcome.result["mixture"]["measured_overhead"] > 0
    for event in intervals:
        for row in event["domains"].values():
            assert row["ratio"] == pytest.approx(np.exp(row["student_nll"] - row["teacher_nll"]), rel=1e-6)


def test_documents_that_drive_the_weights_do_not_score(make_recipe: MakeRecipe) -> None:
    plain = train(mixed(make_recipe, "plain", {"type": "proportional"})).result
    followed = train(mixed(make_recipe, "followed", DDK)).result
    assert plain is not None
    assert followed is not None
    for name, domain in plain["evaluation"]["student_after"]["domains"].items():
        assert 0 < followed["evaluation"]["student_after"]["domains"][name]["documents"] < domain["documents"]


@pytest.mark.parametrize(
    "mixture",
    [
        {"type": "equal", "interval_steps": 3},
        {"type": "proportional", "interval_steps": 3},
        {"type": "fixed", "interval_steps": 3, "weights": {"math": 0.5, "greetings": 0.5, "spelling": 0.0}},
        {"type": "ddk_unsmoothed", "interval_steps": 3, "validation_tokens_per_domain": 30},
    ],
    ids=lambda m: m["type"],
)
def test_every_policy_trains(make_recipe: MakeRecipe, mixture: dict[str, Any]) -> None:
    outcome = train(mixed(make_recipe, "run", mixture))
    shares = weights(events(outcome.directory, "mixture")[-1])
    assert sum(shares.values()) == pytest.approx(1)
    if mixture["type"] == "equal":
        assert len(set(shares.values())) == 1
    if mixture["type"] == "fixed":
        assert shares == {"math": 0.5, "greetings": 0.5, "spelling": 0.0}
        assert all("spelling" not in e["domains"] for e in events(outcome.directory, "step"))


def test_sft_follows_a_teacher_without_learning_from_it(make_recipe: MakeRecipe) -> None:
    outcome = train(mixed(make_recipe, "run", DDK, objective={"type": "sft"}))
    assert len(events(outcome.directory, "mixture")) == 3
    assert events(outcome.directory, "step")[0]["kd"] is None


@pytest.mark.parametrize("step", [1, 3, 4])
def test_interrupted_inside_an_interval_it_resumes_to_the_identical_plan(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = train(mixed(make_recipe, "whole", DDK)).directory
    original = TrainStep.run
    seen = [0]

    def run(self: TrainStep, *arguments: Any, **keywords: Any) -> Any:
        seen[0] += 1
        if seen[0] == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", run)
        assert train(mixed(make_recipe, "broken", DDK)).interrupted
    broken = train(mixed(make_recipe, "broken", DDK)).directory
    a, b = (load_file(run / "model" / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
    shown = [[(e["step"], weights(e)) for e in events(run, "mixture")] for run in (whole, broken)]
    assert shown[0] == shown[1]


def test_the_stop_rule_ends_the_run_when_the_student_has_caught_up(
    make_recipe: MakeRecipe, tiny_model_dir: Path
) -> None:
    teacher = {"path": str(tiny_model_dir)}  # the student itself: its ratio is 1 from the start
    recipe = mixed(
        make_recipe, "run", {**DDK, "stop_discrepancy": 0.02}, teacher=teacher, optimisation={"learning_rate": 1e-9}
    )
    outcome = train(recipe)
    assert outcome.state.stopped_because == "discrepancy"
    assert outcome.state.step == 2
    assert outcome.result is not None


def test_intervals_may_end_the_run(make_recipe: MakeRecipe) -> None:
    assert train(mixed(make_recipe, "run", {**DDK, "max_intervals": 2})).state.step == 4


def test_a_step_holds_the_same_documents_however_it_is_split(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    original = StageLoop._share

    def share(self: StageLoop, documents: Any, indices: Any) -> Any:
        drawn.append(sorted(indices.tolist()))
        return original(self, documents, indices)

    monkeypatch.setattr(StageLoop, "_share", share)
    train(mixed(make_recipe, "a", DDK))
    first, drawn = drawn, []
    train(mixed(make_recipe, "b", DDK, optimisation={"micro_batch_tokens": 32}))
    assert len(first) == 6
    assert first == drawn


def split(recipe: Recipe) -> HeldOutSplit:
    """What a run of ``recipe`` keeps out of its scores, for a student of 1000 parameters and a teacher of 5000."""
    tokenizer = load_tokenizer(recipe.student, base_dir=Path())
    return split_held_out(
        recipe, load_data(recipe, tokenizer, Path()), 1000, 5000, tokenizer=tokenizer, base_dir=Path()
    )


def test_driving_rows_are_the_same_for_every_seed_and_leave_the_scored_rows(make_recipe: MakeRecipe) -> None:
    found = [split(mixed(make_recipe, "run", DDK, seed=seed)) for seed in (0, 1)]
    first, second = (s.driving["main"].uids.tolist() for s in found)
    assert first == second
    scored = found[0].dataset.test
    assert not {bytes(uid) for uid in scored.documents.uids} & {bytes(uid) for uid in found[0].driving["main"].uids}
    domains = [scored.documents.domains[i] for i in scored.documents.domain_ids]
    assert [scored.rows[i].domain for i in scored.documents.rows] == domains
    assert len(scored.rows) == len(set(scored.documents.rows.tolist()))


def test_domains_with_few_driving_targets_are_named(make_recipe: MakeRecipe) -> None:
    found = split(mixed(make_recipe, "run", DDK))
    assert len(found.warnings) == 1
    assert all(f"'{name}' (" in found.warnings[0] for name in ("greetings", "math", "spelling"))
    assert found.lines()[-1] == f"warning: {found.warnings[0]}"


def test_a_cached_teacher_pays_no_part_of_a_step(make_recipe: MakeRecipe, tiny_teacher_dir: Path) -> None:
    teacher = {"path": str(tiny_teacher_dir)}
    cached = {**teacher, "source": "cache", "cache": {"dir": "cache"}}
    live, read = (split(mixed(make_recipe, "run", DDK, teacher=t)).budgets["main"] for t in (teacher, cached))
    assert live.tokens_per_domain == read.tokens_per_domain
    # A step costs 6 * 1000 + 2 * 5000 with the teacher beside it, and 6 * 1000 without.
    assert read.overhead / live.overhead == pytest.approx(16_000 / 6_000)


def test_a_stage_without_rows_drives_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    empty = {"train": [{"path": str(tmp_path / "empty.jsonl")}], "when_empty": "skip"}
    following = {"objective": {"type": "kd"}, "mixture": DDK}
    recipe = make_recipe("run", stages=[{"name": "none", "data": empty, **following}, {"name": "main", **following}])
    data = recipe.model_dump()
    data["data"]["validation_fraction"] = 0.4
    found = split(Recipe.model_validate(data))
    assert list(found.driving) == ["main"]


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ({"type": "equal"}, r"stages\.0\.mixture\.interval_steps=1000: the run has only 6 steps"),
        ({"type": "fixed", "interval_steps": 2, "weights": {"maths": 1.0}}, r"stages\.0\.mixture\.weights\.maths"),
    ],
    ids=["interval", "weights"],
)
def test_mixtures_are_refused_before_anything_is_measured(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, mixture: dict[str, Any], expected: str
) -> None:
    def measured(*_: Any, **__: Any) -> None:
        raise AssertionError("an evaluator was made")

    recipe = mixed(make_recipe, "run", mixture)
    with pytest.raises(RecipeError, match=expected):
        preflight(recipe, base_dir=Path())
    monkeypatch.setattr(Evaluator, "__init__", measured)
    with pytest.raises(RecipeError, match=expected):
        train(recipe)


@pytest.mark.parametrize(
    ("mixture", "error", "expected"),
    [
        ({**DDK, "interval_steps": 50}, RecipeError, r"mixture\.interval_steps=50: the run has only 6 steps"),
        ({"type": "fixed", "interval_steps": 2, "weights": {"maths": 1.0}}, RecipeError, "maths"),
        (
            {"type": "fixed", "interval_steps": 2, "weights": {"math": 0.4, "greetings": 0.1, "spelling": 0.1}},
            RecipeError,
            "sum",
        ),
        ({"type": "ddk", "interval_steps": 2}, RecipeError, "validation_tokens_per_domain"),
    ],
)
def test_bad_mixtures_are_named(
    make_recipe: MakeRecipe, mixture: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        train(mixed(make_recipe, "run", mixture))


def test_a_domain_without_validation_rows_is_named(make_recipe: MakeRecipe, chat_jsonl: Path) -> None:
    rows = [line for line in chat_jsonl.read_text().splitlines() if '"greetings"' not in line][:4]
    held = chat_jsonl.with_name("held.jsonl")
    held.write_text("\n".join(rows) + "\n")
    recipe = mixed(make_recipe, "run", DDK).model_dump()
    recipe["data"]["validation"] = [{"path": str(held)}]
    with pytest.raises(DataError, match="greetings"):
        train(Recipe.model_validate(recipe))


def test_a_mixture_that_follows_needs_a_teacher(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match=r"stages\.0\.mixture\.type=ddk compares the student with a teacher"):
        mixed(make_recipe, "run", DDK, objective={"type": "sft"}, teacher=None)
