"""A folder that appears complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``folder``; on success rename it to ``folder``, else remove it.

    A folder that is there already gives way at that moment, and stays whole until then.

    The files become readable for everyone, as ordinary files are (safetensors writes them for the
    owner only). Raises OSError, as the file system does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            replaced = temporary.with_name(temporary.name + "-replaced")
            folder.rename(replaced)
            temporary.rename(folder)
            shutil.rmtree(replaced)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
