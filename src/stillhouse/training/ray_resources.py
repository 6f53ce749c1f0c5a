"""What one of several tasks may ask of a Ray cluster."""

from __future__ import annotations

from typing import Any


def cpus_for_each(ray: Any, tasks: int, *, gpus: bool) -> int:
    """Return the cores that each of ``tasks`` tasks gets: an even share of all, and no more than one machine has.

    ``gpus``: the tasks ask for GPUs, so only machines with some count. Ray lets a task that fits no machine
    wait for ever, without a word.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [m for m in machines if m.get("GPU", 0) > 0] if gpus else machines
    cores = [int(m.get("CPU", 0)) for m in fitting]
    return max(1, min(sum(cores) // tasks, max(cores, default=1)))
