"""Exact checkpoints: safetensors through torch's distributed checkpoint, and JSON beside them.

A checkpoint is a folder ``step-NNNNNNNN`` with the float32 weights, the optimizer's moments and
``state.json``. It is written under another name, flushed and renamed, so a folder of that name is
whole. Shards are written by rank and read back for any number of processes.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from stillhouse.errors import OutputError, TrainingError
from stillhouse.run_directory import read_json, write_json_atomic
from stillhouse.training.distributed import World
from stillhouse.training.precision import Weights

_NAME = re.compile(r"step-(\d{8})$")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(self, folder: Path, world: World, *, keep: int) -> None:
        self.folder, self._world, self._keep = folder, world, keep

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m.group(1)) for p in self.folder.iterdir() if (m := _NAME.match(p.name)))

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, weights: Weights, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Write a checkpoint; every rank calls this. Raises OutputError when the disk refuses."""
        if self.path(step).exists():
            return
        temporary = self.folder / f".writing-{step:08d}"
        try:
            if self._world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self._world.barrier()
            _dcp_save(_tensors(weights, optimizer), temporary, self._world)
            self._world.barrier()
            if self._world.is_main:
                files = {p.name: p.stat().st_size for p in sorted(temporary.iterdir())}
                write_json_atomic(temporary / "state.json", {**state, "step": step, "files": files})
                _flush(temporary)
                temporary.rename(self.path(step))
            self._world.barrier()
        except OSError as error:
            raise OutputError(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({error}); earlier checkpoints are whole, "
                "free some space and run the same command again"
            ) from error

    def read_state(self, step: int) -> dict[str, Any]:
        """Return a checkpoint's JSON state after checking that its files are whole.

        Raises TrainingError that names the damaged file.
        """
        folder = self.path(step)
        state: dict[str, Any] = read_json(folder / "state.json")
        for name, size in state["files"].items():
            file = folder / name
            if not file.exists() or file.stat().st_size != size:
                raise TrainingError(
                    f"{file}: this checkpoint is damaged; delete the folder {folder} to go on from an earlier one"
                )
        return state

    def load(self, step: int, weights: Weights, optimizer: torch.optim.Optimizer, *, prefix: str = "") -> None:
        """Put a checkpoint's weights and moments into ``weights`` and ``optimizer``, in place.

        ``prefix``: leave parameters whose name does not begin with it as they are.
        """
        tensors = _tensors(weights, optimizer, prefix)
        _dcp_load(tensors, self.path(step), self._world)
        weights.refresh()

    def load_weights(self, step: int, weights: Weights, *, prefix: str = "") -> None:
        """Put a checkpoint's weights alone into ``weights``; ``prefix`` as in :meth:`load`."""
        named = {f"model.{n}": p.detach() for n, p in weights.named().items() if n.startswith(prefix)}
        _dcp_load(named, self.path(step), self._world)
        weights.refresh()

    def prune(self, best: int | None) -> None:
        """Remove all but the newest ``keep`` and the best."""
        if self._world.is_main:
            for step in self.steps()[: -self._keep]:
                if step != best:
                    shutil.rmtree(self.path(step))
        self._world.barrier()


def _tensors(weights: Weights, optimizer: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """A flat dictionary of the live tensors; loading writes into them."""
    result: dict[str, Tensor] = {}
    for name, parameter in weights.named().items():
        if not name.startswith(prefix):
            continue
        result[f"model.{name}"] = parameter.detach()
        moments = optimizer.state[parameter]
        if not moments:
            _start_moments(moments, parameter)
        for key in _MOMENTS:
            result[f"optimizer.{name}.{key}"] = moments[key]
    return result


def _start_moments(moments: dict[str, Any], parameter: Tensor) -> None:
    """What AdamW itself starts from at its first step."""
    moments["step"] = torch.zeros((), dtype=torch.float32)
    moments["exp_avg"] = torch.zeros_like(parameter.detach())
    moments["exp_avg_sq"] = torch.zeros_like(parameter.detach())


def _dcp_save(tensors: dict[str, Tensor], folder: Path, world: World) -> None:
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that one process is one process
        dcp_save(tensors, storage_writer=writer, no_dist=not world.is_distributed)


def _dcp_load(tensors: dict[str, Tensor], folder: Path, world: World) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dcp_load(
                tensors, storage_reader=HuggingFaceStorageReader(path=str(folder)), no_dist=not world.is_distributed
            )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise TrainingError(
            f"{folder}: this checkpoint does not fit the recipe or is damaged ({error}); "
            "delete the folder to go on from an earlier one"
        ) from error


def _flush(folder: Path) -> None:
    for file in (*folder.iterdir(), folder):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
