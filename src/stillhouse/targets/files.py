"""Writing files so that a reader sees all of them or nothing, whatever kills the writer."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError, OutputError

CHECKSUM_BYTES = 16
TEMPORARY_PREFIX = ".writing-"
_CHUNK = 1 << 20


def checksum(data: bytes | memoryview) -> str:
    """Return the 128-bit BLAKE2b of ``data`` as hex."""
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).hexdigest()


def file_checksum(path: Path) -> str:
    """Return the 128-bit BLAKE2b of a file as hex, reading it piece by piece."""
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def write_file(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Write beside ``path``, flush to disk, then give it its name in one step.

    With ``replace`` False an existing file wins: it is left alone and False is returned, even when two
    processes try at the same moment. Raises OutputError when the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free some space or choose another place for the cache"
        ) from error
    return True


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(value: Any) -> bytes:
    """Return readable JSON; NaN is refused."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json_object(path: Path, way_out: str) -> dict[str, Any]:
    """Read a JSON object. Raises DataError naming the file and the ``way_out`` when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {way_out}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold a JSON object; {way_out}")
    return value
