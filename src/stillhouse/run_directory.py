"""The run directory: the only interface between commands.

``recipe.yaml`` (resolved), ``environment.json``, ``metrics.jsonl`` (append-only),
``checkpoints/``, ``generated/`` (what a teacher wrote for sequence-level KD), ``initial/`` (a pruned
student before training), ``model/``, ``evaluation/*.json``, ``doremi_weights.json`` (of a DoReMi proxy),
``result.json`` (written last, atomically) and ``report.html``.
A directory with ``result.json`` is done; one without can be resumed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from stillhouse.errors import OutputError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe_io import dump_recipe, parse_yaml

OWNED = (
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "generated",
    "initial",
    "model",
    "evaluation",
    "doremi_weights.json",
    "result.json",
    "report.html",
    "tracker",
    "log.txt",
    "attempt.json",
)


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, flush it to disk and rename; raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, since other readers of JSON cannot parse it."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one of our own JSON files; a damaged one is named."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: cannot be read ({error}); delete the file or the run directory and run again"
        ) from error


class RunDirectory:
    """One run's folder, opened for a new run or to resume one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_done(self) -> bool:
        return (self.path / "result.json").exists()

    @property
    def has_run(self) -> bool:
        return (self.path / "recipe.yaml").exists()

    def saved_evaluation(self, name: str) -> Any | None:
        """Return ``evaluation/NAME.json`` if an earlier attempt wrote it."""
        path = self.path / "evaluation" / f"{name}.json"
        return read_json(path) if path.exists() else None

    @classmethod
    def check(cls, recipe: Recipe, path: Path, *, overwrite: bool) -> RunDirectory:
        """Refuse a place that cannot take this run, before any work; nothing is written.

        Raises OutputError when the folder holds a finished run, another recipe's run or other
        files and ``overwrite`` is off, or when it cannot be written.
        """
        run = cls(path)
        if path.exists() and not path.is_dir():
            raise OutputError(f"output.dir={path}: this is a file; name a folder")
        if path.is_dir() and not overwrite:
            run._refuse_foreign(recipe)
        nearest = path
        while not nearest.exists():
            nearest = nearest.parent
        if not os.access(nearest, os.W_OK):
            raise OutputError(f"output.dir={path}: {nearest} is read-only; choose another output.dir")
        return run

    @classmethod
    def open(cls, recipe: Recipe, path: Path, *, overwrite: bool) -> RunDirectory:
        """Check the place, clear our own files under ``overwrite``, and write ``recipe.yaml``."""
        run = cls.check(recipe, path, overwrite=overwrite)
        if overwrite and path.is_dir():
            run._clear()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from error
        write_text_atomic(path / "recipe.yaml", dump_recipe(recipe))
        return run

    def _refuse_foreign(self, recipe: Recipe) -> None:
        if self.is_done:
            raise OutputError(
                f"output.dir={self.path}: a finished run is here; choose another output.dir, or add --overwrite to replace it"
            )
        if self.has_run:
            saved = parse_yaml((self.path / "recipe.yaml").read_text(encoding="utf-8"), str(self.path / "recipe.yaml"))
            changed = changed_fields(saved, recipe.model_dump(mode="json"))
            if changed:
                raise RecipeError(
                    f"output.dir={self.path}: an unfinished run of another recipe is here (different: {', '.join(changed[:5])}); "
                    "use its recipe to resume it, choose another output.dir, or add --overwrite to replace it"
                )
        elif any(self.path.iterdir()):
            raise OutputError(
                f"output.dir={self.path}: the folder holds other files; name a new or empty folder (--overwrite replaces only files of a run)"
            )

    def _clear(self) -> None:
        for name in OWNED:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def changed_fields(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The dotted fields in which two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [f for k in keys for f in changed_fields(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else k)]
    return [] if old == new else [prefix]


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); free some space or choose another output.dir"
    )
