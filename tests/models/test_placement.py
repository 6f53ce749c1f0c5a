"""Teachers larger than one device compute what a whole one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_families import family_model
from stillhouse.errors import ModelError
from stillhouse.models.head import probe_batch, split_model
from stillhouse.models.placement import place_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_offloaded_layers_compute_the_same_and_go_home(family: str) -> None:
    model, batch = family_model(family), probe_batch(family_model(family))
    expected = split_model(model).states(batch)
    homes = {name: p.data_ptr() for name, p in model.named_parameters()}
    place_model(model, "offload", CPU)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(split_model(model).states(batch), expected)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == homes


def test_one_layer_visits_at_a_time() -> None:
    model, batch = family_model("llama"), probe_batch(family_model("llama"))
    place_model(model, "offload", CPU)
    layers = model.model.layers
    homes = [layer.mlp.up_proj.weight.data_ptr() for layer in layers]
    visiting: list[list[int]] = []

    def away(*_: object) -> None:
        visiting.append([i for i in range(4) if layers[i].mlp.up_proj.weight.data_ptr() != homes[i]])

    for layer in layers:
        layer.mlp.register_forward_hook(away)
    with torch.no_grad():
        split_model(model).states(batch)
    assert visiting == [[0], [1], [2], [3]]


def test_a_failing_layer_goes_home_too() -> None:
    model, batch = family_model("llama"), probe_batch(family_model("llama"))
    place_model(model, "offload", CPU)
    weight = model.model.layers[1].mlp.up_proj.weight
    home = weight.data_ptr()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), torch.no_grad():
        split_model(model).states(batch)
    assert weight.data_ptr() == home


def test_whole_moves_everything() -> None:
    model = place_model(family_model("llama"), "whole", torch.device("meta"))
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_sharding_needs_processes() -> None:
    with pytest.raises(ModelError, match=r"teacher\.placement=sharded needs several processes"):
        place_model(family_model("llama"), "sharded", CPU)


WORKER = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from model_families import family_model
from stillhouse.models.head import probe_batch
from stillhouse.models.placement import place_model
from stillhouse.teachers.live import LiveTeacher

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
batch = probe_batch(family_model("qwen2"))
whole = LiveTeacher(family_model("qwen2"), vocabulary_map=None, vocab_size=60)
model = place_model(family_model("qwen2"), "sharded", torch.device("cpu"))
sharded = LiveTeacher(model, vocabulary_map=None, vocab_size=60)
assert sharded.num_parameters == whole.num_parameters
for _ in range(2):
    expected, actual = whole.targets(batch, (1,)), sharded.targets(batch, (1,))
    assert torch.equal(actual.projection.hidden, expected.projection.hidden)
    assert torch.equal(actual.projection.weight, expected.projection.weight)
    assert torch.equal(actual.layers[1], expected.layers[1])
inside = {isinstance(p, DTensor) for p in model.model.layers.parameters()}
outside = [isinstance(p, DTensor) for n, p in model.named_parameters() if ".layers." not in n]
assert inside == {True} and not any(outside), (inside, outside)
local = sum(p.to_local().numel() for p in model.model.layers.parameters())
assert 2 * local == sum(p.numel() for p in family_model("qwen2").model.layers.parameters())
dist.destroy_process_group()
print("same")
"""


@pytest.mark.slow
def test_two_processes_shard_the_layers_and_agree_with_one(tmp_path: Path) -> None:
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert out.strip() == "same", err
