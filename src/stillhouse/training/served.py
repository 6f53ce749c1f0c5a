"""A recipe's served teacher: the connection, and what its cache says about who answered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.errors import ModelError
from stillhouse.recipe import TeacherConfig
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.manifest import FILE_NAME, read_manifest
from stillhouse.teachers.server_client import ServerClient, served_fingerprint

if TYPE_CHECKING:
    from torch import Tensor


def open_server(config: TeacherConfig, *, processes: int = 1) -> ServerClient:
    """Return the client of the recipe's server, a context manager.

    Where several processes ask at the same time, each takes its share of ``concurrency``, at least
    one request. Raises as :class:`ServerClient`.
    """
    assert config.server is not None, "the recipe's validation asks for it"
    share = max(1, config.server.concurrency // processes)
    return ServerClient(config.server.model_copy(update={"concurrency": share}))


def is_begun(folder: Path) -> bool:
    """True when there is a cache, perhaps an empty one."""
    return (folder / FILE_NAME).is_file()


def held_teacher(config: TeacherConfig, folder: Path) -> str:
    """Return the teacher's fingerprint as far as it is known without asking the server.

    A cache that was captured from a model of this name knows more (where the server had it from), so
    training from it needs no server.
    """
    assert config.server is not None, "the recipe's validation asks for it"
    name = served_fingerprint(config.server.model)
    if not is_begun(folder):
        return name
    held = read_manifest(folder).teacher
    return held if held.startswith(name) else name


def answers_digest(config: TeacherConfig, base_dir: Path) -> str | None:
    """Name what the teacher has said so far, by the contents of its cache; None where it has none.

    A served model has no weights to take a fingerprint of, and its name may be given to another one. Its
    answers tell them apart.
    """
    if config.cache is None or not is_begun(base_dir / config.cache.dir):
        return None
    cache = TargetCache.open(base_dir / config.cache.dir)
    if cache.identity.teacher != held_teacher(config, cache.path):
        return None
    digest = hashlib.blake2b(cache.identity.teacher.encode(), digest_size=16)
    for shard in cache.shards:
        digest.update(shard.entry.name.encode())
    return digest.hexdigest() if cache.shards else None


def refuse_trimmed(mapping: Tensor | None) -> None:
    """Raise ModelError for a student that knows only part of the teacher's tokens.

    Its targets are the teacher's distribution over that part, and a server does not tell the mass of it.
    """
    if mapping is not None:
        raise ModelError(
            "student.path: its vocabulary is a trimmed one, and a served teacher answers for its whole vocabulary; use a "
            "student with the teacher's tokens, or teacher.source live or cache with the weights here"
        )
