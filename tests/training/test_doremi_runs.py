"""DoReMi in a run: the proxy's weights move as written, whatever the split; the final run draws by them."""

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

from stillhouse.errors import ModelError, RecipeError
from stillhouse.preflight.check import preflight
from stillhouse.recipe import Recipe
from stillhouse.training.doremi import WEIGHTS_NAME, read_weights
from stillhouse.training.run import train
from stillhouse.training.step import TrainStep

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def proxy(make_recipe: MakeRecipe, tiny_teacher_dir: Path) -> MakeRecipe:
    """A proxy's recipe; the reference is another random model, so that some domain lags from the start."""

    def build(name: str = "proxy", objective: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        wanted = {"type": "doremi_proxy", "reference": str(tiny_teacher_dir), **(objective or {})}
        return make_recipe(name, objective=wanted, teacher=None, **changes)

    return build


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_weights_follow_the_excess_loss(proxy: MakeRecipe) -> None:
    outcome = train(proxy(objective={"eta": 2.0, "smoothing": 0.01}))
    steps = [e["doremi"] for e in events(outcome.directory, "step")]
    names = list(steps[0]["weights"])
    weights, last = np.full(3, 1 / 3), np.full(3, np.nan)
    history = []
    for step in steps:
        for i, name in enumerate(names):
            last[i] = step["excess"].get(name, last[i])
        seen = [step["excess"][name] for name in names if name in step["excess"]]
        moved = weights * np.exp(2.0 * np.where(np.isnan(last), np.mean(seen), last))
        weights = 0.99 * moved / moved.sum() + 0.01 / 3
        history.append(weights)
        assert [step["weights"][name] for name in names] == pytest.approx(weights.tolist())
        assert [step["average"][name] for name in names] == pytest.approx(np.mean(history, axis=0).tolist())
    written = json.loads((outcome.directory / WEIGHTS_NAME).read_text())
    assert list(written["weights"].values()) == pytest.approx(np.mean(history, axis=0).tolist())
    assert outcome.result is not None
    assert outcome.result["doremi"] == {"stage": "main", **written}
    assert max(weights) - min(weights) > 0.05  # they did move


def test_the_repository_counts_the_first_weights(proxy: MakeRecipe) -> None:
    outcome = train(proxy(objective={"convention": "repository"}))
    steps = [e["doremi"] for e in events(outcome.directory, "step")]
    for name, value in json.loads((outcome.directory / WEIGHTS_NAME).read_text())["weights"].items():
        assert value == pytest.approx((1 / 3 + sum(step["weights"][name] for step in steps)) / (1 + len(steps)))


def test_the_loss_is_weighted_by_weight_over_share(proxy: MakeRecipe) -> None:
    run = train(proxy(optimisation={"budget": {"steps": 2}})).directory
    result = json.loads((run / "result.json").read_text())
    targets = {name: d["targets"] for name, d in result["data"]["train"]["domains"].items()}
    tokens = {name: d["tokens"] for name, d in result["data"]["train"]["domains"].items()}
    total = sum(tokens.values())
    share = {name: tokens[name] / total * targets[name] / tokens[name] for name in targets}
    share = {name: value / sum(share.values()) for name, value in share.items()}
    assert result["doremi"]["sampling"] == pytest.approx(share)
    for step in events(run, "step"):
        weights, domains = step["doremi"]["weights"], step["domains"]
        counted = {name: weights[name] / share[name] * d["targets"] for name, d in domains.items()}
        expected = sum(counted[name] * d["ce"] for name, d in domains.items()) / sum(counted.values())
        assert step["loss"] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_change_nothing(proxy: MakeRecipe) -> None:
    a = train(proxy("a", optimisation={"micro_batch_tokens": 256})).directory
    b = train(proxy("b", optimisation={"micro_batch_tokens": 32})).directory
    for left, right in zip(events(a, "step"), events(b, "step"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
        assert left["doremi"]["weights"] == pytest.approx(right["doremi"]["weights"], rel=1e-4)


def test_interrupted_it_goes_on_bit_for_bit(proxy: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(proxy("whole")).directory
    original, seen = TrainStep.run, [0]

    def run(self: TrainStep, *arguments: Any, **keywords: Any) -> Any:
        seen[0] += 1
        if seen[0] == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", run)
        assert train(proxy("broken")).interrupted
    broken = train(proxy("broken")).directory
    a, b = (load_file(run / "model" / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / WEIGHTS_NAME).read_text() == (broken / WEIGHTS_NAME).read_text()


def test_reference_proxy_and_final_run(make_recipe: MakeRecipe, proxy: MakeRecipe) -> None:
    reference = train(make_recipe("reference", objective={"type": "sft"}, teacher=None)).directory
    found = train(proxy(objective={"reference": str(reference)})).directory
    data = make_recipe("final", objective={"type": "sft"}, teacher=None).model_dump()
    data["stages"][0]["mixture"] = {"type": "doremi", "interval_steps": 3, "weights_from": str(found)}
    final = train(Recipe.model_validate(data)).directory
    expected = json.loads((found / WEIGHTS_NAME).read_text())["weights"]
    for event in events(final, "mixture"):
        assert {name: row["weight"] for name, row in event["domains"].items()} == pytest.approx(expected)


def test_a_domain_that_is_never_drawn_takes_no_part(proxy: MakeRecipe) -> None:
    data = proxy().model_dump()
    weights = {"math": 0.5, "greetings": 0.5, "spelling": 0.0}
    data["stages"][0]["mixture"] = {"type": "fixed", "interval_steps": 3, "weights": weights}
    run = train(Recipe.model_validate(data)).directory
    assert read_weights(str(run), Path())["spelling"] == 0.0


def with_weights(make_recipe: MakeRecipe, path: str) -> Recipe:
    data = make_recipe(objective={"type": "sft"}).model_dump()
    data["stages"][0]["mixture"] = {"type": "doremi", "interval_steps": 3, "weights_from": path}
    return Recipe.model_validate(data)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, r"mixture\.weights_from=.*there is no .*doremi_proxy writes it"),
        ({"format": 1, "weights": {"maths": 1.0}}, r"weights_from=.*\.maths: there is no such domain.*'math'"),
        ({"format": 1, "weights": {"math": 1.0}}, "no weight for greetings, spelling"),
        ({"format": 1, "weights": {"math": 0.5, "greetings": 0.1, "spelling": 0.1}}, "sum to 0.7"),
        ({"format": 1, "weights": {"math": "half"}}, "the weight of 'math' is 'half', not a number"),
        ({"format": 2, "weights": {"math": 1.0}}, "is no file of domain weights"),
        ([1.0], "is no file of domain weights"),
    ],
)
def test_bad_weights_are_named(make_recipe: MakeRecipe, tmp_path: Path, content: Any, expected: str) -> None:
    path = tmp_path / "weights.json"
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=expected):
        train(with_weights(make_recipe, str(path)))


def test_the_preflight_says_what_is_not_there_yet_and_checks_what_is(
    make_recipe: MakeRecipe, proxy: MakeRecipe, tmp_path: Path
) -> None:
    early = with_weights(make_recipe, str(tmp_path / "proxy_run"))
    assert any("proxy_run is not there yet" in w for w in preflight(early, base_dir=tmp_path).warnings)
    first = proxy(objective={"reference": str(tmp_path / "reference_run")})
    assert any("reference_run is no folder here" in w for w in preflight(first, base_dir=tmp_path).warnings)
    assert not any("no folder" in w for w in preflight(proxy(), base_dir=tmp_path).warnings)
    assert any(
        "leaves out what stages.0.objective.type=doremi_proxy does" in w
        for w in preflight(proxy(), base_dir=tmp_path).warnings
    )
    (tmp_path / "weights.json").write_text(json.dumps({"format": 1, "weights": {"maths": 1.0}}))
    with pytest.raises(RecipeError, match="maths: there is no such domain"):
        preflight(with_weights(make_recipe, str(tmp_path / "weights.json")), base_dir=tmp_path)


def test_an_unfinished_reference_is_named(proxy: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text("seed: 0\n")
    with pytest.raises(ModelError, match=r"objective\.reference=.*half: the run in .* is not finished"):
        train(proxy(objective={"reference": str(tmp_path / "half")}))


def test_a_reference_of_another_tokenizer_is_named(
    proxy: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for file in tiny_teacher_dir.iterdir():
        if not file.name.startswith("tokenizer"):
            (folder / file.name).write_bytes(file.read_bytes())
    saved = json.loads(make_tokenizer().backend_tokenizer.to_str())
    saved["model"]["vocab"] = {
        {"a": "b", "b": "a"}.get(token, token): number for token, number in saved["model"]["vocab"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    (folder / "tokenizer_config.json").write_bytes((tiny_teacher_dir / "tokenizer_config.json").read_bytes())
    with pytest.raises(ModelError, match=r"objective\.reference=.*reference and proxy need one tokenizer"):
        train(proxy(objective={"reference": str(folder)}))


def test_a_proxy_refuses_a_mixture_that_moves(proxy: MakeRecipe, tiny_teacher_dir: Path) -> None:
    data = proxy().model_dump()
    data["teacher"] = {"path": str(tiny_teacher_dir)}
    data["stages"][0]["mixture"] = {"type": "ddk", "interval_steps": 2}
    with pytest.raises(ValueError, match=r"stages\.0\.mixture\.type=ddk: a proxy weighs domains"):
        Recipe.model_validate(data)
