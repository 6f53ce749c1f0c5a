"""metrics.jsonl, and the trackers beside it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stillhouse.errors import MissingDependencyError
from stillhouse.training.metrics import MetricsLog, forget_after, open_tracker


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.closed = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def close(self) -> None:
        self.closed = True


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_json_and_scalars_reach_the_tracker(tmp_path: Path) -> None:
    recorder = Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", recorder)
    log.write("step", 1, {"stage": "main", "loss": 0.5, "kd": None, "domains": {"math": {"ce": 1.0}}})
    log.close()
    assert read(tmp_path / "metrics.jsonl")[0] == {
        "event": "step", "step": 1, "stage": "main", "loss": 0.5, "kd": None, "domains": {"math": {"ce": 1.0}}
    }  # fmt: skip
    assert recorder.logged == [({"step/loss": 0.5, "step/domains/math/ce": 1.0}, 1)]
    assert recorder.closed


def test_a_value_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write("step", 1, {"loss": math.inf, "deep": {"x": math.nan}})
    log.close()
    assert read(tmp_path / "m.jsonl")[0] == {"event": "step", "step": 1, "loss": None, "deep": {"x": None}}


def test_resuming_forgets_what_comes_after_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"event": "step", "stage": n, "step": s}) for n in ("one", "two") for s in range(5)]
    path.write_text("\n".join(lines) + '\n{"event": "st')
    forget_after(path, "two", 2, earlier=["one"])
    assert [(line["stage"], line["step"]) for line in read(path)] == [
        *(("one", s) for s in range(5)),
        *(("two", s) for s in range(3)),
    ]
    forget_after(path, "one", 1)
    assert [(line["stage"], line["step"]) for line in read(path)] == [("one", 0), ("one", 1)]
    forget_after(tmp_path / "none.jsonl", "one", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_no_tracker(tmp_path: Path) -> None:
    assert open_tracker("none", tmp_path, "run", {}) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_writes_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = open_tracker("tensorboard", tmp_path / "tb", "run", {})
    assert tracker is not None
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert any(p.name.startswith("events") for p in (tmp_path / "tb").iterdir())


@pytest.mark.parametrize("kind", ["trackio", "wandb"])
def test_the_others_get_the_same_calls(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    module = ModuleType(kind)
    module.init = lambda **kw: calls.append(("init", kw))  # type: ignore[attr-defined]
    module.log = lambda values, step: calls.append(("log", (values, step)))  # type: ignore[attr-defined]
    module.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kind, module)
    tracker = open_tracker(kind, tmp_path, "run", {"seed": 1})
    assert tracker is not None
    tracker.log({"loss": 1.0}, 3)
    tracker.close()
    assert calls == [
        ("init", {"project": "stillhouse", "name": "run", "config": {"seed": 1}}),
        ("log", ({"loss": 1.0}, 3)),
        ("finish", None),
    ]


def test_a_missing_tracker_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r"output\.tracker=wandb.*stillhouse\[wandb\]"):
        open_tracker("wandb", tmp_path, "run", {})
