"""On-policy and sequence-level KD: who writes the answers, and what is learnt from them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from stillhouse.data.document import Document
from stillhouse.errors import DataError
from stillhouse.recipe import Recipe
from stillhouse.training import sequence_labels
from stillhouse.training.answers import prompt_ids, with_answer
from stillhouse.training.on_policy import OnPolicy, is_on_policy
from stillhouse.training.run import train
from stillhouse.training.step import TrainStep

MakeRecipe = Callable[..., Recipe]
ROLLOUT = {"max_new_tokens": 5, "temperature": 0.9}


def gkd(**fields: Any) -> dict[str, Any]:
    return {"type": "gkd", "rollout": ROLLOUT, **fields}


def events(run: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_draw_is_the_share_and_the_same_everywhere() -> None:
    drawn = [is_on_policy(3, step, 0.3) for step in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 4000))
    assert drawn == [is_on_policy(3, step, 0.3) for step in range(4000)]
    assert not any(is_on_policy(3, step, 0.0) for step in range(100))
    assert all(is_on_policy(3, step, 1.0) for step in range(100))


@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.integers(1, 6),
    st.lists(st.integers(0, 99), min_size=1, max_size=5),
)
def test_only_the_last_answer_is_replaced(before: list[bool], length: int, answer: list[int]) -> None:
    mask = np.array([False, *before, False, *[True] * length])
    document = Document(np.arange(len(mask), dtype=np.int32), mask, 2, b"u" * 16)
    prompt = prompt_ids(document)
    assert prompt == list(range(len(before) + 2))
    new = with_answer(prompt, answer, document.domain, "hash")
    assert new.input_ids.tolist() == prompt + answer
    assert new.loss_mask.tolist() == [False] * len(prompt) + [True] * len(answer)
    assert new.domain == 2


def test_without_on_policy_steps_it_is_supervised_kd(make_recipe: MakeRecipe) -> None:
    common = {"divergence": {"type": "jsd"}, "mixing": {"type": "convex", "kd_weight": 1.0}}
    supervised = train(make_recipe("kd", objective={"type": "kd", **common})).directory
    generalized = train(make_recipe("gkd", objective=gkd(on_policy_fraction=0.0))).directory
    assert same(supervised, generalized)
    assert "on_policy" not in events(generalized)[0]


def test_on_policy_steps_learn_from_the_students_words(make_recipe: MakeRecipe) -> None:
    outcome = train(make_recipe(objective=gkd(on_policy_fraction=1.0), optimisation={"budget": {"steps": 12}}))
    steps = events(outcome.directory)
    assert all(step["on_policy"] for step in steps)
    assert all(0 < step["answer_tokens"] <= 5 for step in steps)
    assert all(0 <= step["answers_finished"] <= 1 for step in steps)
    assert all(step["loss"] == pytest.approx(step["kd"]) for step in steps)  # no cross-entropy
    assert np.mean([s["kd"] for s in steps[-3:]]) < np.mean([s["kd"] for s in steps[:3]])


def test_ce_joins_on_the_datas_answers_alone(make_recipe: MakeRecipe) -> None:
    objective = gkd(on_policy_fraction=0.5, mixing={"type": "convex", "kd_weight": 0.5})
    steps = events(train(make_recipe(objective=objective, optimisation={"budget": {"steps": 8}})).directory)
    assert {step["on_policy"] for step in steps} == {True, False}
    for step in steps:
        expected = 0.5 * step["kd"] + (0.0 if step["on_policy"] else 0.5 * step["ce"])
        assert step["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("buffer_steps", [1, 3])
def test_interrupted_it_resumes_bit_for_bit_with_what_was_written_ahead(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, buffer_steps: int
) -> None:
    objective = gkd(on_policy_fraction=0.8, buffer_steps=buffer_steps)
    whole = train(make_recipe("whole", objective=objective)).directory
    original, seen = TrainStep.run, [0]

    def run(self: TrainStep, *args: Any, **keywords: Any) -> Any:
        seen[0] += 1
        if seen[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", run)
        assert train(make_recipe("broken", objective=objective)).interrupted
    resumed = train(make_recipe("broken", objective=objective)).directory
    assert same(whole, resumed)


def test_a_buffer_asks_the_model_less_often(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []
    original = OnPolicy._fill
    monkeypatch.setattr(OnPolicy, "_fill", lambda self, *a: (rounds.append(1), original(self, *a))[1])
    train(make_recipe("buffered", objective=gkd(on_policy_fraction=1.0, buffer_steps=4)))
    assert len(rounds) == 2  # six steps in rounds of four


def test_prompts_follow_a_mixture(make_recipe: MakeRecipe) -> None:
    """The interval's plan decides which prompts are answered."""
    weights_ = {"greetings": 1.0, "math": 0.0, "spelling": 0.0}
    stage = {
        "objective": gkd(on_policy_fraction=1.0, buffer_steps=5),
        "mixture": {"type": "fixed", "weights": weights_, "interval_steps": 2},
    }
    steps = events(train(make_recipe(stages=[stage])).directory)
    assert all(set(step["domains"]) == {"greetings"} for step in steps)


def test_a_prompt_without_room_for_an_answer_is_named(make_recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match=r"objective\.rollout\.max_new_tokens=100000"):
        train(make_recipe(objective={"type": "gkd", "rollout": {"max_new_tokens": 100_000}}))


def test_plain_text_has_no_prompt(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"once upon a time {n}"}) + "\n" for n in range(20)))
    with pytest.raises(DataError, match="plain text has no prompt"):
        train(make_recipe(objective=gkd(), data={"train": [{"path": str(path)}], "max_seq_len": 64}))


# --- sequence-level KD ----------------------------------------------------------------------


def sequence_recipe(make_recipe: MakeRecipe, name: str, **fields: Any) -> Recipe:
    return make_recipe(name, objective={"type": "sequence_kd", "rollout": {"max_new_tokens": 12, **fields}})


@pytest.fixture
def finished_answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The random teacher seldom ends a turn: let every answer count as ended, and count the rounds."""
    from stillhouse.rollout.generator import Completion, ModelGenerator

    rounds: list[int] = []
    original = ModelGenerator.generate

    def generate(self: ModelGenerator, prompts: Any, settings: Any, *, seed: int) -> list[Completion]:
        rounds.append(len(prompts))
        found = original(self, prompts, settings, seed=seed)
        return [Completion(c.text.replace("<", "").strip() or "x", True, c.tokens) for c in found]

    monkeypatch.setattr(ModelGenerator, "generate", generate)
    return rounds


def test_the_teachers_answers_are_what_is_learnt(
    make_recipe: MakeRecipe, finished_answers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence_labels, "CHUNK_ROWS", 8)
    outcome = train(sequence_recipe(make_recipe, "sequence"))
    assert outcome.result is not None
    chunks = sorted((outcome.directory / "generated" / "main").glob("*.jsonl"))
    lines = [json.loads(line) for chunk in chunks for line in chunk.read_text().splitlines()]
    assert len(chunks) == len(finished_answers) > 1
    assert all(line["finished"] and line["answer"] for line in lines)
    first = events(outcome.directory)[0]
    assert first["kd"] is None
    assert first["loss"] == first["ce"]


def test_finished_chunks_are_not_asked_for_again(
    make_recipe: MakeRecipe, finished_answers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence_labels, "CHUNK_ROWS", 8)
    whole = train(sequence_recipe(make_recipe, "whole")).directory
    asked = len(finished_answers)
    original = sequence_labels.write_text_atomic

    class PowerCut(BaseException):
        pass

    def cut(path: Path, text: str) -> None:
        if path.name == "chunk-00001.jsonl":
            raise PowerCut
        original(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(sequence_labels, "write_text_atomic", cut)
        with pytest.raises(PowerCut):
            train(sequence_recipe(make_recipe, "cut"))
    del finished_answers[:]
    resumed = train(sequence_recipe(make_recipe, "cut")).directory
    assert len(finished_answers) == asked - 1
    assert same(whole, resumed)


def test_answers_that_never_end_are_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match=r"cut off at objective\.rollout\.max_new_tokens=1"):
        train(sequence_recipe(make_recipe, "cut_off", max_new_tokens=1))
