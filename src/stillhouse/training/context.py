"""What the stages of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from stillhouse.recipe import Recipe, StageConfig
from stillhouse.run_directory import RunDirectory
from stillhouse.targets.cache import TargetCache
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.distributed import World
from stillhouse.training.models import Student


@dataclass(frozen=True)
class StageContext:
    """What a stage shares with the others of its run."""

    recipe: Recipe
    base_dir: Path
    directory: RunDirectory
    student: Student
    world: World
    console: Console | None
    targets: TargetCache | None = None
    """The teacher's, checked against the documents of all stages; None where no stage reads them."""

    def checkpoints(self, stage: str) -> Checkpoints:
        folder = self.directory / "checkpoints" / stage
        return Checkpoints(folder, self.world, keep=self.recipe.checkpoints.keep)

    def saying(self, stage: StageConfig) -> Callable[[str], None]:
        """Return the function that tells a person, if one listens, something about a stage."""

        def say(text: str) -> None:
            if self.console is not None:
                self.console.print(f"[{stage.name}] {text}", markup=False, highlight=False, soft_wrap=True)

        return say
