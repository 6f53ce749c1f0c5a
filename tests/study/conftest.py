"""A study of tiny runs: random models of one tokenizer, 31 chat rows, float32, no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import SFT, WriteStudy


@pytest.fixture
def base_data(tiny_model_dir: Path, tiny_teacher_dir: Path, chat_jsonl: Path) -> dict[str, Any]:
    """A KD recipe of six steps, as a mapping."""
    return {
        "teacher": {"path": str(tiny_teacher_dir)},
        "student": {"path": str(tiny_model_dir)},
        "data": {"train": [{"path": str(chat_jsonl)}], "validation_fraction": 0.2, "max_seq_len": 64},
        "stages": [
            {
                "objective": {"type": "kd"},
                "optimisation": {
                    "budget": {"steps": 6},
                    "learning_rate": 1e-2,
                    "batch_tokens": 128,
                    "micro_batch_tokens": 64,
                    "precision": "float32",
                    "compile_head": False,
                },
            }
        ],
        "evaluation": {"every_steps": 3, "generation": {"rows": 0, "samples": 1, "max_new_tokens": 4}},
        "checkpoints": {"every_steps": 1},
        "output": {"dir": "unused"},
    }


@pytest.fixture
def write_study(tmp_path: Path, base_data: dict[str, Any]) -> WriteStudy:
    """Write a base recipe and a study file; ``train`` is the budget of its stage."""

    def write(name: str = "study", *, train: dict[str, int] | None = None, **fields: Any) -> Path:
        if train is not None:
            base_data["stages"][0]["optimisation"]["budget"] = train
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base_data))
        path = tmp_path / f"{name}.yaml"
        data = {
            "name": "tiny",
            "base": "base.yaml",
            "output": str(tmp_path / name),
            "seeds": [0, 1],
            "axes": {"method": {"kd": {}, "sft": SFT}},
            **fields,
        }
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements are shared between runs of a machine, not between tests.

    Workers share out the cores, and sums of two threads round differently from those of one: results that
    are compared to the last bit come from one.
    """
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def start_study() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``stillhouse study FILE`` as a process of its own; what is left of it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "stillhouse.cli.main", "study", str(path), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
