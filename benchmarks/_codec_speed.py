"""Section `speed`: capture beside the bare teacher, and training from a cache beside SFT and dense KD."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _codec_errors import KD_ONLY, Probe, joined_objective
from _codec_setup import Setup, describe, make_cache

from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.recipe import OptimisationConfig, SFTObjective
from stillhouse.targets.blocks import ChunkLogits, part
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.targets.capture import CaptureSettings, encode
from stillhouse.targets.codec import Codec, Sampled, TopKGhost
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import Projection
from stillhouse.training.distributed import World
from stillhouse.training.precision import MasterWeights
from stillhouse.training.step import TrainStep
from stillhouse.training.student import DistillationModule

CAPTURED: tuple[Codec, ...] = (TopKGhost(k=12), Sampled(draws=50), Sampled(draws=50, method="independent"))
READ: Codec = Sampled(draws=50)


def capture_share(setup: Setup, codecs: Sequence[Codec], repeats: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of the bare forward and of each codec's capture over the same batches, taken in turns."""
    batches = setup.batches[:: max(1, len(setup.batches) // 4)]
    settings = CaptureSettings(micro_batch_tokens=setup.micro_batch_tokens, chunk=setup.chunk)

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                projection = setup.teacher.targets(batch).projection
                for start in range(0, len(batch.document_ids), setup.chunk):
                    ChunkLogits.of(part(projection, start, start + setup.chunk), setup.vocab_size)

    def captured(codec: Codec) -> Callable[[], None]:
        identity = CacheIdentity("", "", codec, 1.0, setup.vocab_size, 0)
        cache = TargetCache.open_or_create(folder / describe(codec), identity)

        def run() -> None:
            for batch in batches:
                cache.add(list(encode(setup.teacher, batch, setup.documents, identity, settings)))

        return run

    runs = {"bare": bare, **{describe(codec): captured(codec) for codec in codecs}}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - start)
    return seconds


def head_seconds(probe: Probe, cache: TargetCache, setup: Setup, repeats: int) -> dict[str, float]:
    """Median seconds of the head alone, forward and backward: plain SFT, dense KD, KD from the cache."""
    found = [CachedTeacher(cache, setup.documents).targets(batch) for batch in probe.batches]
    sft = ObjectiveTerms.from_config(SFTObjective(type="sft"), setup.vocab_size)

    def low(projection: Projection) -> Projection:
        return Projection(projection.hidden.bfloat16(), projection.weight.bfloat16())

    half = Probe(probe.batches, low(probe.student), low(probe.teacher), probe.labels, probe.terms, probe.chunk)

    def plain(student: Projection, n: float) -> ObjectiveOutput:
        output = fused_objective(student, half.labels, None, sft, normaliser=n, chunk=half.chunk, compiled=True)
        return ObjectiveOutput(**{**vars(output), "kd": output.ce})

    runs: dict[str, Callable[[], object]] = {
        "sft": lambda: half.gradients(plain),
        "cache": lambda: half.gradients(lambda student, n: joined_objective(student, half, found, n)),
        "dense": lambda: half.dense(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def read_speed(cache: TargetCache, setup: Setup, repeats: int) -> float:
    """Targets a second that one thread reads and decodes, batch by batch."""
    reader = CachedTeacher(cache, setup.documents)
    start = time.perf_counter()
    rows = sum(len(reader.targets(batch)) for _ in range(repeats) for batch in setup.batches)
    return rows / (time.perf_counter() - start)


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def step_speeds(setup: Setup, cache: TargetCache, repeats: int) -> dict[str, list[float]]:
    """Tokens a second of whole training steps over the same batches, in turns: SFT, from the cache, dense KD.

    Each has weights and optimizer of its own; bfloat16 compute with float32 masters. One step is one of
    the set-up's batches.
    """
    sft = SFTObjective(type="sft")
    contestants = {
        "sft": _train_step(setup, None, sft),
        "cache": _train_step(setup, CachedTeacher(cache, setup.documents), KD_ONLY),
        "dense": _train_step(setup, setup.teacher, KD_ONLY),
    }
    batches = setup.batches[:: max(1, len(setup.batches) // 4)]
    tokens = sum(int(setup.documents.lengths[np.unique(batch.document_ids.numpy())].sum()) for batch in batches)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, step in contestants.items():
            start = time.perf_counter()
            for batch in batches:
                step.run([batch], len(batch.labels), learning_rate=1e-5)
            if turn:  # the first turn compiles
                speeds[name].append(tokens / (time.perf_counter() - start))
    return speeds


def _train_step(setup: Setup, teacher: LiveTeacher | CachedTeacher | None, objective: Any) -> TrainStep:
    student = copy.deepcopy(setup.student).float().requires_grad_(True).train()
    module = DistillationModule(student, chunk=setup.chunk, compiled=True)  # type: ignore[arg-type]
    return TrainStep(
        module,
        MasterWeights(module, torch.bfloat16),
        teacher=teacher,
        terms=ObjectiveTerms.from_config(objective, setup.vocab_size),
        config=OptimisationConfig(head_chunk=setup.chunk),
        domains=setup.documents.domains,
        world=World(0, 1, torch.device("cpu")),
    )


def measure_speed(setup: Setup, targets: int, repeats: int, work: Path) -> dict[str, Any]:
    """Everything of this section; shares are medians over the turns."""
    cache = make_cache(setup, setup.teacher, READ, work / "read")
    seconds = capture_share(setup, CAPTURED, repeats, work / "capture")
    shares = {
        name: median([bare / value for bare, value in zip(seconds["bare"], values, strict=True)])
        for name, values in seconds.items()
    }
    steps = step_speeds(setup, cache, repeats)
    over_sft = {
        name: median([value / sft for value, sft in zip(values, steps["sft"], strict=True)])
        for name, values in steps.items()
    }
    head = head_seconds(Probe.of(setup, targets), cache, setup, repeats)
    reading = read_speed(cache, setup, repeats)
    print("capture, share of the bare teacher's speed:", rounded(shares))
    print("training, share of SFT's tokens/s:", rounded(over_sft))
    print("head's step in seconds:", rounded(head))
    print(f"reading: {reading:,.0f} targets/s")
    return {
        "capture_share": shares,
        "step_tokens_per_second": steps,
        "step_share_of_sft": over_sft,
        "head_seconds": head,
        "read_targets_per_second": reading,
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    """For people."""
    return {name: round(value, 3) for name, value in values.items()}
