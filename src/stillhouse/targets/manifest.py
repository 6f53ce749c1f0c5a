"""What a cache is of: teacher, tokenizer, codec and temperature. A mismatch is an error, never a warning."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError, ModelError, RecipeError, StillhouseError
from stillhouse.targets.codec import Codec, codec_from
from stillhouse.targets.files import json_bytes, read_json_object, write_file

FORMAT = "stillhouse-targets"
FORMAT_VERSION = 2
FILE_NAME = "manifest.json"
LIBRARIES = ("stillhouse", "torch", "transformers", "numpy")

_REBUILD = "delete the cache folder and capture again"


@dataclass(frozen=True)
class CacheIdentity:
    """Everything that decides what a record means; two captures may share a cache if all of it is equal.

    ``teacher``: fingerprint of the weights as they are stored, whatever they were computed in.
    ``teacher_dtype``: what that was; whoever does not ask for a precision (empty) takes the cache's.
    ``teacher_name``, ``teacher_parameters`` and ``chat_template`` (a digest) are for people and not compared
    (documents are keyed by their ids, so another template asks for other documents). Nor is ``seed``: whoever
    adds to a cache draws with the cache's own, so students of many seeds share one cache.
    """

    teacher: str
    tokenizer: str
    codec: Codec
    temperature: float
    vocab_size: int
    seed: int
    teacher_name: str = ""
    teacher_parameters: int = 0
    chat_template: str = ""
    teacher_dtype: str = ""

    def __post_init__(self) -> None:
        assert self.vocab_size > 0
        if not self.temperature > 0:
            raise RecipeError(f"teacher.cache.temperature={self.temperature}: must be above 0")

    def describe(self) -> dict[str, Any]:
        """Return the identity as JSON."""
        return {**asdict(self), "codec": self.codec.describe()}

    def difference(self, wanted: CacheIdentity) -> StillhouseError | None:
        """Return the error that names the first way in which this cache is not the ``wanted`` one."""
        if self.teacher != wanted.teacher:
            named = f" ({self.teacher_name})" if self.teacher_name else ""
            return ModelError(
                f"teacher.path: the cache was captured from another teacher{named}: its fingerprint is {self.teacher}, "
                f"that of the teacher now is {wanted.teacher}; use that teacher, or capture into a new cache folder"
            )
        if (self.tokenizer, self.vocab_size) != (wanted.tokenizer, wanted.vocab_size):
            return ModelError(
                f"teacher.cache: captured with tokenizer {self.tokenizer} ({self.vocab_size} ids), but the student's "
                f"is {wanted.tokenizer} ({wanted.vocab_size} ids); capture again with the student's tokenizer"
            )
        return self._settings_difference(wanted)

    def _settings_difference(self, wanted: CacheIdentity) -> StillhouseError | None:
        ours, theirs = self.codec.describe(), wanted.codec.describe()
        pairs: dict[str, tuple[Any, Any]] = {
            f"teacher.cache.codec.{name}": (ours.get(name), theirs.get(name)) for name in {**ours, **theirs}
        }
        pairs["teacher.cache.temperature"] = (self.temperature, wanted.temperature)
        if self.teacher_dtype and wanted.teacher_dtype:
            pairs["teacher.dtype"] = (self.teacher_dtype, wanted.teacher_dtype)
        for field, (mine, other) in pairs.items():
            if mine != other:
                return RecipeError(
                    f"{field}={other}: the cache was captured with {mine}; set it to that, or capture into a new "
                    "cache folder (neither codec, temperature nor precision can be changed afterwards)"
                )
        return None

    def other_template(self, wanted: CacheIdentity) -> str:
        """Say for people that the first capture used another chat template; empty where it did not."""
        if not self.chat_template or not wanted.chat_template or self.chat_template == wanted.chat_template:
            return ""
        return (
            f"The chat template is another one than at the first capture (digest {wanted.chat_template}, then "
            f"{self.chat_template}), and it decides the documents' tokens: check data.chat_template and the tokenizer's. "
        )


def write_manifest(folder: Path, identity: CacheIdentity) -> bool:
    """Write the manifest unless there is one; False if another writer was first."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **identity.describe(),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return write_file(folder / FILE_NAME, json_bytes(content), replace=False)


def read_manifest(folder: Path) -> CacheIdentity:
    """Read a cache's identity. Raises DataError naming the file when it is no cache or of another version."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise DataError(f"teacher.cache={folder}: no cache is here (no {FILE_NAME}); run `stillhouse capture` first")
    content = read_json_object(path, _REBUILD)
    if content.get("format") == FORMAT and content.get("format_version") == 1:
        raise DataError(
            f"{path}: format version 1 names the teacher by its weights in the precision of the machine that captured, "
            f"which another machine cannot compare; {_REBUILD}: `stillhouse capture` with the same recipe"
        )
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format {content.get('format')!r} version {content.get('format_version')!r} is not "
            f"{FORMAT!r} version {FORMAT_VERSION}; {_REBUILD}"
        )
    names = [f.name for f in fields(CacheIdentity)]
    missing = [name for name in names if name not in content]
    if missing:
        raise DataError(f"{path}: has no field {missing[0]!r}; {_REBUILD}")
    values: dict[str, Any] = {name: content[name] for name in names}
    return CacheIdentity(**{**values, "codec": codec_from(content["codec"])})
