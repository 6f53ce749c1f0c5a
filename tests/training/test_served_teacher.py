"""Runs whose teacher is a server: captured, trained, measured and labelled without its weights here."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import fake_server
from fake_server import FakeServer, serving
from stillhouse.errors import DataError, ModelError, ServerError
from stillhouse.preflight.check import preflight
from stillhouse.recipe import Recipe, TeacherConfig
from stillhouse.report.card import write_card
from stillhouse.report.page import render_run_report
from stillhouse.targets.cache import TargetCache
from stillhouse.training import sequence_labels
from stillhouse.training.cached import CapturePlan, capture_recipe
from stillhouse.training.run import train
from stillhouse.training.served import open_server

MakeRecipe = Callable[..., Recipe]

KEY = "sk-of-the-training-test"


@pytest.fixture
def server(tiny_teacher_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[FakeServer]:
    with serving(LlamaForCausalLM.from_pretrained(tiny_teacher_dir).eval(), tiny_tokenizer) as fake:
        yield fake


@pytest.fixture
def tokenizer_dir(tiny_teacher_dir: Path, tmp_path: Path) -> Path:
    """What is here of the teacher."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for file in tiny_teacher_dir.iterdir():
        if "token" in file.name or "template" in file.name:
            shutil.copy(file, folder)
    assert not (folder / "config.json").exists()
    return folder


def teacher(server: FakeServer, path: Path, cache: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "source": "server",
        "server": {"url": server.url, "model": "demo", "concurrency": 4, "max_retries": 1, "timeout_seconds": 10.0},
        "cache": {"dir": str(cache), "codec": {"type": "topk_ghost", "k": 12, "value_bits": 16}},
    }


def fill(recipe: Recipe) -> CapturePlan:
    plans: list[CapturePlan] = []
    capture_recipe(recipe, base_dir=Path(), announce=plans.append)
    return plans[0]


def steps(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


SCORED = {"every_steps": 3, "generation": {"rows": 4, "samples": 2, "max_new_tokens": 5}}


def test_a_run_is_that_of_the_same_teacher_captured_here(
    make_recipe: MakeRecipe, server: FakeServer, tokenizer_dir: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    codec = {"type": "topk_ghost", "k": 12, "value_bits": 16}
    local = {"path": str(tiny_teacher_dir), "source": "cache", "cache": {"dir": str(tmp_path / "a"), "codec": codec}}
    here = make_recipe("here", teacher=local, evaluation=SCORED)
    there = make_recipe("there", teacher=teacher(server, tokenizer_dir, tmp_path / "b"), evaluation=SCORED)
    assert fill(here).documents == fill(there).documents > 0
    ours, theirs = train(here), train(there)
    assert ours.result is not None
    assert theirs.result is not None
    for left, right in zip(steps(ours.directory), steps(theirs.directory), strict=True):
        for name in ("loss", "ce", "kd", "teacher_nll", "top1_agreement"):
            assert left[name] == pytest.approx(right[name], rel=2e-3), name
        assert right["teacher_entropy"] is None
        assert all("teacher_entropy" not in domain for domain in right["domains"].values())
    # The teacher is measured through requests alone.
    live, served = ours.result["evaluation"]["teacher"], theirs.result["evaluation"]["teacher"]
    assert served["nll"] == pytest.approx(live["nll"], rel=1e-5)
    for domain, numbers in live["domains"].items():
        assert served["domains"][domain] == pytest.approx(numbers, rel=1e-5)
    assert served["exact_match"] == live["exact_match"]
    assert [s["teacher"] for s in theirs.result["samples"]] == [s["teacher"] for s in ours.result["samples"]]
    assert theirs.result["parameters"]["teacher"] is None
    write_card(theirs.directory / "model", theirs.result)
    assert "Teacher on the training tokens" in render_run_report(theirs.directory).read_text()


def test_the_second_student_needs_no_server(
    make_recipe: MakeRecipe, server: FakeServer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    shared = teacher(server, tokenizer_dir, tmp_path / "targets")
    fill(make_recipe(teacher=shared))
    assert train(make_recipe("first", teacher=shared)).result is not None
    server.requests.clear()
    shared["server"] = {**shared["server"], "url": "http://127.0.0.1:9/v1"}
    assert fill(make_recipe(teacher=shared)).documents == 0
    assert train(make_recipe("second", teacher=shared, seed=1)).result is not None
    assert not server.requests


def test_what_is_missing_or_another_teacher_is_named_before_training(
    make_recipe: MakeRecipe, server: FakeServer, tokenizer_dir: Path, chat_jsonl: Path, tmp_path: Path
) -> None:
    place = tmp_path / "targets"
    with pytest.raises(DataError, match="run `stillhouse capture` first"):
        train(make_recipe("none", teacher=teacher(server, tokenizer_dir, place)))
    some = {"train": [{"path": str(chat_jsonl), "limit": 12}], "validation_fraction": 0.2, "max_seq_len": 64}
    fill(make_recipe(teacher=teacher(server, tokenizer_dir, place), data=some))
    with pytest.raises(DataError, match="are not in the cache"):
        train(make_recipe("some", teacher=teacher(server, tokenizer_dir, place)))
    assert TargetCache.open(place).identity.teacher == "server:demo:tiny"
    server.root = "/models/larger"
    with pytest.raises(ModelError, match=r"captured from another teacher.*server:demo:tiny.*server:demo:larger"):
        fill(make_recipe(teacher=teacher(server, tokenizer_dir, place)))
    server.root = "/elsewhere/tiny"  # moved: the same teacher
    fill(make_recipe(teacher=teacher(server, tokenizer_dir, place)))
    renamed = teacher(server, tokenizer_dir, place)
    renamed["server"]["model"] = server.name = "demo-2"
    with pytest.raises(ModelError, match=r"captured from another teacher \(demo\)"):
        train(make_recipe("renamed", teacher=renamed, data=some))


def test_a_server_that_is_down_is_named(
    make_recipe: MakeRecipe, server: FakeServer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    down = teacher(server, tokenizer_dir, tmp_path / "targets")
    down["server"] = {**down["server"], "url": "http://127.0.0.1:9/v1", "max_retries": 0}
    with pytest.raises(ServerError, match=r"teacher\.server: the server at http://127\.0\.0\.1:9/v1 cannot be reached"):
        fill(make_recipe(teacher=down))


def test_the_key_is_nowhere(
    make_recipe: MakeRecipe,
    server: FakeServer,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TRAINING_KEY", KEY)
    server.key = KEY
    guarded = teacher(server, tokenizer_dir, tmp_path / "targets")
    guarded["server"]["api_key_env"] = "TRAINING_KEY"
    recipe = make_recipe(teacher=guarded)
    fill(recipe)
    assert train(recipe).result is not None
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "result.json" for path in files)
    assert all(KEY.encode() not in path.read_bytes() for path in files)
    assert KEY not in caplog.text


def test_sequence_kd_learns_what_the_server_writes(
    make_recipe: MakeRecipe, server: FakeServer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    config = teacher(server, tokenizer_dir, tmp_path)
    del config["cache"]
    objective = {"type": "sequence_kd", "rollout": {"max_new_tokens": 6}}
    outcome = train(make_recipe(teacher=config, objective=objective))
    assert outcome.result is not None
    lines = taught(outcome.directory)
    assert lines
    for line in lines:
        assert line["answer"].startswith(line["prompt"][-1][1].upper())


def taught(directory: Path) -> list[dict[str, Any]]:
    files = sorted((directory / "generated" / "main").glob("chunk-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def chats(server: FakeServer) -> list[str]:
    return [json.dumps(body, sort_keys=True) for path, body in server.requests if path.endswith("/chat/completions")]


def test_an_interrupted_labelling_pays_for_no_answer_twice(
    make_recipe: MakeRecipe,
    server: FakeServer,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequence_labels, "CHUNK_ROWS", 8)
    config = teacher(server, tokenizer_dir, tmp_path)
    del config["cache"]
    config["server"]["concurrency"] = 1
    objective = {"type": "sequence_kd", "rollout": {"max_new_tokens": 6}}
    whole = train(make_recipe("whole", teacher=config, objective=objective))
    asked = chats(server)
    server.requests.clear()
    gone = fake_server.status(400, "gone")
    server.always = lambda good: gone(good) if len(chats(server)) == 12 else None
    with pytest.raises(ServerError, match="gone"):
        train(make_recipe("cut", teacher=config, objective=objective))
    assert len(chats(server)) == 12
    server.always = None
    folder = whole.directory.parent / "cut" / "generated" / "main"
    assert len((folder / "answers-rank-00000.jsonl").read_text().splitlines()) == 11
    assert [file.name for file in folder.glob("chunk-*")] == ["chunk-00000.jsonl"]
    resumed = train(make_recipe("cut", teacher=config, objective=objective))
    assert len(chats(server)) == len(asked) + 1
    assert set(chats(server)) == set(asked)
    assert taught(resumed.directory) == taught(whole.directory)


def test_processes_share_the_concurrency(server: FakeServer, tokenizer_dir: Path, tmp_path: Path) -> None:
    config = TeacherConfig.model_validate(teacher(server, tokenizer_dir, tmp_path))
    for processes, share in ((1, 4), (2, 2), (3, 1), (9, 1)):
        with open_server(config, processes=processes) as client:
            assert client.config.concurrency == share


def test_preflight_counts_no_memory_for_the_teacher(
    make_recipe: MakeRecipe, server: FakeServer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    report = preflight(make_recipe(teacher=teacher(server, tokenizer_dir, tmp_path / "targets")), base_dir=tmp_path)
    assert report.teacher is None


def test_a_folder_without_a_tokenizer_is_named(make_recipe: MakeRecipe, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ModelError, match=r"teacher\.path=.*holds no tokenizer\.json; a served teacher needs its tokenizer"
    ):
        fill(make_recipe(teacher=teacher(server, tmp_path / "empty", tmp_path / "targets")))


CODEC = {"type": "topk_ghost", "k": 12}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "codec": (
        {"cache": {"dir": "c", "codec": {"type": "sampled"}}},
        {},
        r"teacher\.cache\.codec\.type=sampled: .*topk_ghost.*--max-logprobs",
    ),
    "default codec": ({"cache": {"dir": "c"}}, {}, r"codec\.type=sampled"),
    "temperature": (
        {"cache": {"dir": "c", "codec": CODEC, "temperature": 2.0}},
        {"objective": {"type": "kd", "temperature": 2.0}},
        r"teacher\.cache\.temperature=2\.0: .*temperature 1 alone",
    ),
    "no cache": ({"cache": None}, {}, r"stages\.0\.objective\.type=kd reads what a server said from a cache"),
    "no server": ({"server": None}, {}, r"teacher\.source=server and teacher\.server belong together"),
    "a server for a live teacher": ({"source": "live", "cache": None}, {}, "belong together"),
    "own answers": ({}, {"objective": {"type": "gkd"}}, "a cache knows nothing of what the student writes"),
    "weights to prune": (
        {},
        {"student": {"type": "pruned", "depth": {"layers": 1}}},
        r"student\.type=pruned: the weights of a served teacher are not here",
    ),
    "an address with a key": (
        {"server": {"url": "http://user:pass@host/v1", "model": "m"}},
        {},
        r"must be an http:// or https:// address without user, password or query",
    ),
    "a key for a variable": (
        {"server": {"url": "http://host/v1", "model": "m", "api_key_env": "sk-123"}},
        {},
        "must be the name of an environment variable, not the key itself",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_server_cannot_serve_is_refused_in_the_recipe(
    name: str, make_recipe: MakeRecipe, server: FakeServer, tmp_path: Path
) -> None:
    changes, top, expected = REFUSED[name]
    with pytest.raises(ValueError, match=expected):
        make_recipe(teacher={**teacher(server, tmp_path, tmp_path / "c"), **changes}, **top)


def test_a_mixture_that_follows_the_teacher_is_refused(
    make_recipe: MakeRecipe, server: FakeServer, tmp_path: Path
) -> None:
    stage = {"objective": {"type": "kd"}, "mixture": {"type": "ddk"}}
    with pytest.raises(ValueError, match=r"stages\.0\.mixture\.type=ddk measures the teacher while it trains"):
        make_recipe(teacher=teacher(server, tmp_path, tmp_path / "c"), stages=[stage])
