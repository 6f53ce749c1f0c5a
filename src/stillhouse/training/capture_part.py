"""One part of a capture as a task for another process: ``python -m stillhouse.training.capture_part``.

The task comes as one JSON line on stdin, and JSON lines go to stdout: progress, and at the end what was
done or the message of a user's mistake. The worker ends when stdin does: when its parent is killed, so is
it, and the capture goes on from the last whole shard. SIGINT writes the shard in flight first.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import StillhouseError

if TYPE_CHECKING:
    from stillhouse.targets.capture import CaptureProgress

STOPPED = 130
"""Exit code after SIGINT."""


@dataclass(frozen=True)
class CapturePart:
    """The i-th of n parts of what a recipe's cache lacks. ``recipe`` is resolved; ``base_dir`` is absolute."""

    recipe: dict[str, Any]
    base_dir: str
    part: tuple[int, int]
    threads: int
    """CPU threads of torch."""

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> CapturePart:
        fields = json.loads(line)
        return cls(**{**fields, "part": tuple(fields["part"])})


def capture_part(task: CapturePart, progress: Callable[[CaptureProgress], None] | None = None) -> CaptureProgress:
    """Capture one part in this process; raises as ``capture_recipe``."""
    import torch

    from stillhouse.recipe_io import recipe_from_mapping
    from stillhouse.training.cached import capture_recipe

    torch.set_num_threads(task.threads)
    recipe = recipe_from_mapping(task.recipe)
    base_dir = Path(task.base_dir)
    return capture_recipe(recipe, base_dir=base_dir, announce=lambda _: None, progress=progress, part=task.part)


def main() -> int:
    """Do the task that stdin names."""
    # Whatever a library prints must not get between our lines.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = CapturePart.from_line(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def answer(kind: str, value: object) -> None:
        answers.write(json.dumps({kind: value}) + "\n")
        answers.flush()

    try:
        done = capture_part(task, lambda now: answer("progress", asdict(now)))
    except StillhouseError as error:
        answer("error", str(error))
        return 2
    except KeyboardInterrupt:
        return STOPPED
    answer("done", asdict(done))
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    # Every file is written atomically, so there is nothing to tidy up.
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
