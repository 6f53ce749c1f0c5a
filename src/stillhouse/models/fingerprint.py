"""Whose weights are these? Answered from the files as they lie on the disk, without loading the model.

A digest of stored bytes depends on neither the precision that a machine computes in nor a library's
names for a module's weights, and needs no memory for a model that is only to be recognised.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.models.gguf import cache_root
from stillhouse.models.load import load_model, model_fingerprint, recipe_field, resolve_path
from stillhouse.recipe import ModelConfig, TeacherConfig
from stillhouse.run_directory import read_json, write_json_atomic

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(config: ModelConfig, *, base_dir: Path) -> list[Path]:
    """Return the safetensors files of the model that are on this machine; none where one of them is not.

    Nothing is downloaded: of a hub name this is the snapshot that the hub's library holds. Raises
    ModelError as ``resolve_path`` does.
    """
    source = resolve_path(config, base_dir=base_dir)
    if Path(source).is_absolute():
        folder = Path(source)
        named = _named(folder / WHOLE, folder / INDEX)
        return sorted(folder.glob("*.safetensors")) if named is None else named
    return _named(_held(source, WHOLE, config.revision), _held(source, INDEX, config.revision)) or []


def _held(name: str, file: str, revision: str | None) -> Path | None:
    """A file of the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _named(whole: Path | None, index: Path | None) -> list[Path] | None:
    """The files that transformers would read, in its order of preference; None without either."""
    if whole is not None and whole.is_file():
        return [whole]
    if index is None or not index.is_file():
        return None
    shards = [index.parent / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return shards if all(shard.is_file() for shard in shards) else []


def weights_fingerprint(config: ModelConfig, *, base_dir: Path) -> str:
    """Return a hex digest of the weights as they are stored: names, shapes, dtypes and bytes.

    A teacher in 4 bits has another one than whole. It is remembered under the files' names, sizes and
    times, so that a large model is read once and a changed one is noticed. Weights that are not on
    this machine are fetched. Raises ModelError when they cannot be.
    """
    files = weight_files(config, base_dir=base_dir)
    if not files:
        import torch

        # Fetches what a hub name stands for; in float32 nothing that is stored gets lost.
        whole = config.model_copy(update={"quantization": "none"}) if isinstance(config, TeacherConfig) else config
        model = load_model(whole, dtype=torch.float32, base_dir=base_dir)
        files = weight_files(config, base_dir=base_dir)
        # The hub may keep them under a name or a revision of its own.
        digest = _remembered(files, config) if files else model_fingerprint(model)
    else:
        digest = _remembered(files, config)
    quantization = config.quantization if isinstance(config, TeacherConfig) else "none"
    return digest if quantization == "none" else f"{digest}:{quantization}"


def _remembered(files: list[Path], config: ModelConfig) -> str:
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.blake2b(json.dumps(stats).encode(), digest_size=16).hexdigest()
    memo = cache_root() / "fingerprints" / f"stored-{key}.json"
    if memo.exists():
        return str(read_json(memo)["fingerprint"])
    fingerprint = _digest(files, f"{recipe_field(config)}={config.path}")
    write_json_atomic(memo, {"fingerprint": fingerprint})
    return fingerprint


def _digest(files: list[Path], named: str) -> str:
    """Hash every tensor, by name, whatever file it lies in."""
    import safetensors
    import torch

    digest = hashlib.blake2b(digest_size=16)
    try:
        opened: list[Any] = [safetensors.safe_open(file, framework="pt") for file in files]
        places = sorted((name, i) for i, file in enumerate(opened) for name in file.keys())  # noqa: SIM118
        for name, i in places:
            tensor: torch.Tensor = opened[i].get_tensor(name)
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"{named}: its weights cannot be read: {error}; the folder or download is incomplete"
        ) from error
    return digest.hexdigest()
