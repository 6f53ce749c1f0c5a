"""A capture shared out over processes gives the records of a single one, and says what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import OutputError, RecipeError, StillhouseError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import dump_recipe
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import CaptureProgress
from stillhouse.training import capture_many
from stillhouse.training.cached import CapturePlan, capture_recipe
from stillhouse.training.capture_many import capture_on_ray, capture_on_workers
from stillhouse.training.capture_part import CapturePart, capture_part

MakeRecipe = Callable[..., Recipe]
CODEC = {"type": "sampled", "draws": 20}


@pytest.fixture
def cached(make_recipe: MakeRecipe, tiny_teacher_dir: Path, tmp_path: Path) -> Callable[[str], Recipe]:
    def build(name: str) -> Recipe:
        teacher = {
            "path": str(tiny_teacher_dir),
            "source": "cache",
            "cache": {"dir": str(tmp_path / name), "codec": CODEC},
        }
        return make_recipe(teacher=teacher)

    return build


def nobody(plan: CapturePlan) -> None:
    pass


def records(folder: Path) -> dict[bytes, bytes]:
    cache = TargetCache.open(folder)
    return {
        bytes(uid): record.tobytes()
        for shard in cache.shards
        for uid, record in zip(shard.index()[0], shard.records(range(shard.entry.documents)), strict=True)
    }


def single(recipe: Recipe, tmp_path: Path) -> dict[bytes, bytes]:
    capture_recipe(recipe, base_dir=tmp_path, announce=nobody)
    assert recipe.teacher is not None
    assert recipe.teacher.cache is not None
    return records(Path(recipe.teacher.cache.dir))


def test_parts_are_disjoint_and_give_the_records_of_one_capture(
    cached: Callable[[str], Recipe], tmp_path: Path
) -> None:
    whole = single(cached("whole"), tmp_path)
    recipe = cached("parts")
    found: list[CaptureProgress] = []
    for index in range(3):
        task = CapturePart(recipe.model_dump(mode="json"), str(tmp_path), (index, 3), 1)
        assert CapturePart.from_line(task.to_line()) == task
        found.append(capture_part(task))
    assert all(part.documents for part in found)
    assert sum(part.documents for part in found) == len(whole)
    assert records(tmp_path / "parts") == whole


def test_nothing_is_started_where_nothing_is_missing(
    cached: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single(cached("whole"), tmp_path)
    monkeypatch.setattr(sys, "executable", "/nothing/here")
    plans: list[CapturePlan] = []
    done = capture_on_workers(cached("whole"), 2, base_dir=tmp_path, announce=plans.append)
    assert (done.documents, plans[0].documents) == (0, 0)


def test_several_processes_do_not_share_a_server(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    teacher = {
        "path": "served",
        "source": "server",
        "server": {"url": "http://127.0.0.1:9/v1", "model": "m"},
        "cache": {"dir": str(tmp_path / "c"), "codec": {"type": "topk_ghost"}},
    }
    with pytest.raises(RecipeError, match=r"teacher\.source=server.*--workers"):
        capture_on_workers(make_recipe(teacher=teacher), 2, base_dir=tmp_path, announce=nobody)


def worker_script(folder: Path, body: str) -> str:
    """A stand-in for the interpreter, whatever it is asked to run."""
    script = folder / "worker"
    script.write_text(f"#!/bin/sh\nread task\n{body}\n")
    script.chmod(0o755)
    return str(script)


def line(kind: str, value: Any) -> str:
    return "echo '" + json.dumps({kind: value}) + "'"


DONE = {"documents": 3, "total_documents": 3, "tokens": 30, "total_tokens": 30, "targets": 9, "bytes": 90, "seconds": 1}
HALF = {**DONE, "documents": 1, "tokens": 10, "targets": 3, "bytes": 0}


@pytest.mark.parametrize(
    ("body", "error", "expected"),
    [
        (line("error", "teacher.path: is gone"), StillhouseError, "^teacher.path: is gone$"),
        ("echo out of memory >&2; exit 9", OutputError, r"worker \d of 2 ended with exit code 9:\n  out of memory"),
        (line("progress", HALF), OutputError, "ended with exit code 0"),
    ],
)
def test_what_befalls_a_worker_is_told(
    cached: Callable[[str], Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    error: type[Exception],
    expected: str,
) -> None:
    recipe = cached("cache")
    monkeypatch.setattr(sys, "executable", worker_script(tmp_path, body))
    with pytest.raises(error, match=expected):
        capture_on_workers(recipe, 2, base_dir=tmp_path, announce=nobody)


def test_progress_is_that_of_all_workers(
    cached: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cached("cache")
    script = worker_script(tmp_path, f"{line('progress', HALF)}\n{line('done', DONE)}")
    monkeypatch.setattr(sys, "executable", script)
    seen: list[CaptureProgress] = []
    done = capture_on_workers(recipe, 3, base_dir=tmp_path, announce=nobody, progress=seen.append)
    assert (done.documents, done.tokens, done.targets, done.bytes) == (9, 90, 27, 270)
    assert len(seen) == 6
    assert [p.documents for p in seen] == sorted(p.documents for p in seen)


def test_a_stop_reaches_every_worker(
    cached: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cached("cache")
    body = f"trap 'touch {tmp_path}/stopped-$$; exit 130' INT\ntouch {tmp_path}/up-$$\nwhile :; do sleep 0.02; done"
    monkeypatch.setattr(sys, "executable", worker_script(tmp_path, body))

    def stop() -> None:
        while len(list(tmp_path.glob("up-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        capture_on_workers(recipe, 2, base_dir=tmp_path, announce=nobody)
    assert len(list(tmp_path.glob("stopped-*"))) == 2


def test_threads_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    environments = [capture_many._environment(CapturePart({}, "", (i, 3), 2)) for i in range(3)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["4", "6", "4"]
    assert {e["OMP_NUM_THREADS"] for e in environments} == {"2"}


@pytest.mark.slow
def test_two_processes_give_the_cache_of_one(cached: Callable[[str], Recipe], tmp_path: Path) -> None:
    whole = single(cached("whole"), tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(cached("two")))
    command = [sys.executable, "-m", "stillhouse.cli.main", "capture", str(path), "--workers", "2"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert f"captured {len(whole)} documents" in found.stdout
    assert records(tmp_path / "two") == whole
    assert len(TargetCache.open(tmp_path / "two").shards) == 2


@pytest.mark.slow
def test_a_worker_ends_with_its_parent(cached: Callable[[str], Recipe], tmp_path: Path) -> None:
    task = CapturePart(cached("orphan").model_dump(mode="json"), str(tmp_path), (0, 1), 1)
    worker = subprocess.Popen(
        [sys.executable, "-m", "stillhouse.training.capture_part"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None
    worker.stdin.write(task.to_line().encode() + b"\n")
    worker.stdin.close()  # what happens when the parent is killed
    assert worker.wait(120) in (0, 1)
    assert worker.stdout is not None
    worker.stdout.close()


@pytest.mark.slow
def test_ray_gives_the_cache_of_one(cached: Callable[[str], Recipe], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    whole = single(cached("whole"), tmp_path)
    seen: list[CaptureProgress] = []
    done = capture_on_ray(cached("ray"), 2, base_dir=tmp_path, announce=nobody, progress=seen.append)
    assert done.documents == len(whole)
    assert len(seen) == 2
    assert records(tmp_path / "ray") == whole
    again = capture_on_ray(cached("ray"), 2, base_dir=tmp_path, announce=nobody)
    assert again.documents == 0


@pytest.mark.slow
def test_a_mistake_in_a_ray_task_is_told(
    cached: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    recipe = cached("wrong")
    real = capture_many.plan_capture

    def then_break(wanted: Recipe, base_dir: Path) -> CapturePlan:
        plan = real(wanted, base_dir)
        manifest = tmp_path / "wrong" / "manifest.json"
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**content, "teacher": "another"}))
        return plan

    monkeypatch.setattr(capture_many, "plan_capture", then_break)
    with pytest.raises(StillhouseError, match="another teacher"):
        capture_on_ray(recipe, 1, base_dir=tmp_path, announce=nobody)
    assert not ray.is_initialized()
