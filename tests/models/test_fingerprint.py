"""Weights are recognised by what is stored, on any machine and without loading the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stillhouse.errors import ModelError
from stillhouse.models import fingerprint
from stillhouse.models.fingerprint import weight_files, weights_fingerprint
from stillhouse.recipe import TeacherConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config(folder: Path) -> TeacherConfig:
    return TeacherConfig(path=str(folder))


def shards(source: Path, folder: Path) -> Path:
    """The same tensors in two files."""
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: weights[n] for n in names if places[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_sharding_changes_nothing_and_a_value_does(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = weights_fingerprint(config(tiny_model_dir), base_dir=tmp_path)
    folder = shards(tiny_model_dir, tmp_path / "shards")
    assert weights_fingerprint(config(folder), base_dir=tmp_path) == whole
    weights = load_file(folder / "model-0.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, folder / "model-0.safetensors")
    assert weights_fingerprint(config(folder), base_dir=tmp_path) != whole


def test_files_are_read_once(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights_fingerprint(config(tiny_model_dir), base_dir=tmp_path)
    monkeypatch.setattr(fingerprint, "_digest", None)
    monkeypatch.setattr(fingerprint, "load_model", None)
    assert weights_fingerprint(config(tiny_model_dir), base_dir=tmp_path) == first
    four_bit = TeacherConfig(path=str(tiny_model_dir), quantization="4bit")
    assert weights_fingerprint(four_bit, base_dir=tmp_path) == f"{first}:4bit"


def test_what_is_not_whole_is_not_here(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert weight_files(config(tiny_model_dir), base_dir=tmp_path) == [tiny_model_dir / "model.safetensors"]
    folder = shards(tiny_model_dir, tmp_path / "shards")
    assert len(weight_files(config(folder), base_dir=tmp_path)) == 2
    (folder / "model-1.safetensors").unlink()
    assert weight_files(config(folder), base_dir=tmp_path) == []
    assert weight_files(TeacherConfig(path="no-such-org/no-such-model"), base_dir=tmp_path) == []


def test_a_cut_file_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tiny_model_dir / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"teacher\.path=.*its weights cannot be read"):
        weights_fingerprint(config(tmp_path), base_dir=tmp_path)


def test_a_snapshot_of_the_hub_is_found_without_a_network(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {("org/name", "model.safetensors"): str(tiny_model_dir / "model.safetensors")}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, file, revision=None: held.get((name, file))
    )
    named = TeacherConfig(path="org/name")
    assert weights_fingerprint(named, base_dir=tmp_path) == weights_fingerprint(
        config(tiny_model_dir), base_dir=tmp_path
    )
