"""What a task asks of a cluster fits on one of its machines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.training.ray_resources import cpus_for_each


def cluster(*machines: tuple[float, float], dead: tuple[float, float] | None = None) -> Any:
    nodes = [{"Alive": True, "Resources": {"CPU": c, **({"GPU": g} if g else {})}} for c, g in machines]
    if dead is not None:
        nodes.append({"Alive": False, "Resources": {"CPU": dead[0], "GPU": dead[1]}})
    return SimpleNamespace(nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("machines", "tasks", "gpus", "expected"),
    [
        (((8, 0), (8, 0)), 1, False, 8),  # an even share would be 16, which no machine has
        (((8, 0), (8, 0)), 4, False, 4),
        (((64, 0), (8, 1)), 1, True, 8),  # the large machine has no GPU
        (((2, 0),), 5, False, 1),
        ((), 2, False, 1),
    ],
)
def test_the_share_fits_one_machine(
    machines: tuple[tuple[float, float], ...], tasks: int, gpus: bool, expected: int
) -> None:
    assert cpus_for_each(cluster(*machines), tasks, gpus=gpus) == expected


def test_machines_that_are_gone_do_not_count() -> None:
    assert cpus_for_each(cluster((4, 0), dead=(64, 8)), 1, gpus=False) == 4
