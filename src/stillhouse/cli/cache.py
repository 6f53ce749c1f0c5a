"""The commands around a cache of teacher targets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stillhouse.errors import DataError
from stillhouse.recipe_io import load_recipe
from stillhouse.targets.maintenance import info, prune, verify

if TYPE_CHECKING:
    from stillhouse.targets.capture import CaptureProgress
    from stillhouse.training.cached import CapturePlan


def capture_targets(path: Path, overrides: Sequence[str], *, workers: int | None, on_ray: bool) -> None:
    """Fill the recipe's cache, with the amount first, then progress and the time left."""
    from stillhouse.training.cached import capture_recipe
    from stillhouse.training.capture_many import capture_on_ray, capture_on_workers

    console = Console()

    def announce(plan: CapturePlan) -> None:
        _say(
            console,
            f"{plan.documents} documents with {plan.targets} targets to capture into {plan.folder}: "
            f"about {plan.bytes / 1e6:.1f} MB",
        )

    plain = PlainCapture(console)
    columns = (TextColumn("capture"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("capture", total=None, speed="")

        def progress(now: CaptureProgress) -> None:
            speed = f"{now.tokens_per_second:.0f} tok/s"
            bar.update(task, completed=now.tokens, total=now.total_tokens, speed=speed)
            if not console.is_terminal:
                plain.tell(now)

        recipe, base_dir = load_recipe(path, overrides), Path.cwd()
        if on_ray:
            done = capture_on_ray(recipe, workers, base_dir=base_dir, announce=announce, progress=progress)
        elif workers is not None and workers > 1:
            done = capture_on_workers(recipe, workers, base_dir=base_dir, announce=announce, progress=progress)
        else:
            done = capture_recipe(recipe, base_dir=base_dir, announce=announce, progress=progress)
    _say(
        console,
        f"captured {done.documents} documents, {done.targets} targets, {done.bytes / 1e6:.1f} MB "
        f"in {done.seconds:.0f} s ({done.tokens_per_second:.0f} tokens/s)",
    )


class PlainCapture:
    """Where there is no terminal: a line when work begins, every fifteen seconds, and at the end."""

    def __init__(self, console: Console, seconds: float = 15.0) -> None:
        self._console, self._seconds = console, seconds
        self._last: float | None = None

    def tell(self, now: CaptureProgress) -> None:
        """Print how far the capture is, if it is time to."""
        moment = time.monotonic()
        finished = now.documents >= now.total_documents
        if self._last is not None and moment - self._last < self._seconds and not finished:
            return
        self._last = moment
        left = "" if now.seconds_left is None else f"  {timedelta(seconds=round(now.seconds_left))} left"
        _say(
            self._console,
            f"[capture] {now.documents} of {now.total_documents} documents  {now.tokens_per_second:.0f} tok/s{left}",
        )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_info(folder: Path) -> None:
    """Print a cache's identity, counts and sizes as JSON."""
    sys.stdout.write(json.dumps(info(folder), indent=2) + "\n")


def verify_cache(folder: Path) -> None:
    """Check every byte. Raises DataError with a line a damaged file."""
    found = verify(folder)
    if found.damaged:
        raise DataError(
            "\n".join([*found.damaged, f"{folder}: `stillhouse cache prune {folder}` removes the damaged shards"])
        )
    sys.stdout.write(
        f"{folder}: {found.shards} shards, {found.documents} documents, {found.targets} targets, all whole\n"
    )


def prune_cache(folder: Path, recipe: Path | None) -> None:
    """Remove what is damaged, left over, or not used by the recipe."""
    documents = None
    if recipe is not None:
        from stillhouse.training.cached import training_documents

        documents = training_documents(load_recipe(recipe), Path.cwd())
    found = prune(folder, documents)
    sys.stdout.write(
        f"removed {found.damaged_shards} damaged shards, {found.stray_files} leftover files, "
        f"{found.documents} documents: {found.bytes / 1e6:.1f} MB\n"
    )
