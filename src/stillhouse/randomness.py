"""Every consumer of randomness derives its own generator from (seed, purpose, step, rank).

Nothing in the library draws from a global generator, so a run resumed at step ``n`` draws what
the uninterrupted run drew, and adding one consumer does not shift the numbers of another.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed that depends on every argument (BLAKE2b of their text)."""
    key = ":".join([str(seed), purpose, *map(str, indices)]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return a NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, purpose, *indices))


def torch_generator(seed: int, purpose: str, *indices: int, device: str = "cpu") -> torch.Generator:
    """Return a torch generator for one purpose on ``device``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *indices))
