"""What the benchmarks that train many models share: recipes and studies as files, done by the `stillhouse` command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def stillhouse(*arguments: str) -> None:
    """Run the command; a failure or an interruption ends the benchmark, which goes on when it is started again."""
    if subprocess.run([sys.executable, "-m", "stillhouse.cli.main", *arguments], check=False).returncode != 0:
        sys.exit(f"not finished: stillhouse {' '.join(arguments)}; run the same command again")


def run_study(work: Path, name: str, base: dict[str, Any], study: dict[str, Any], *, jobs: int) -> Path:
    """Write recipe and study, run `stillhouse study` on them, and return the study's folder."""
    write_yaml(work / f"{name}_recipe.yaml", base)
    fields = {"name": name, "base": f"{name}_recipe.yaml", "output": str(work / name), "jobs": jobs, **study}
    path = write_yaml(work / f"{name}.yaml", fields)
    stillhouse("study", str(path))
    return work / name


def write_yaml(path: Path, value: dict[str, Any]) -> Path:
    """Write a recipe or study, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[str]:
    """The rows of a JSONL file, as text."""
    return path.read_text(encoding="utf-8").splitlines()


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """Write rows, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_result(path: Path) -> dict[str, Any]:
    """A JSON file of a run or study."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rounded(value: Any) -> Any:
    """Six digits are more than the spread over seeds leaves meaning in."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
