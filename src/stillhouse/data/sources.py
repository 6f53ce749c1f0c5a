"""Read rows from JSONL and Parquet files, folders and globs of them, and ``hf://`` datasets."""

from __future__ import annotations

import glob
import hashlib
import heapq
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.checkable import CHECK_COLUMNS
from stillhouse.data.rows import Row, RowFormat, RowParser, content_digest, detect_format
from stillhouse.errors import DataError, EmptySourceError, did_you_mean
from stillhouse.recipe import Columns, SourceConfig

JSONL_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
SHARD = re.compile(r"-\d+-of-\d+$")
HUB_PREFIX = "hf://"


@dataclass(frozen=True)
class Record:
    """One decoded row and where it stands."""

    fields: Mapping[str, Any]
    where: str
    default_domain: str
    default_id: str


def load_rows(sources: Sequence[SourceConfig], *, seed: int, base_dir: Path, allow_empty: bool = False) -> list[Row]:
    """Return the rows of all sources, in the order of the recipe and of the files.

    Relative paths start at ``base_dir``. ``limit`` and ``limit_per_domain`` draw rows with
    ``seed``: each row has a place in a random order that depends on the seed and its content
    alone, so a smaller limit is a subset of a larger one. With both, the domains are cut first.

    The domain of a row: ``domain`` of the source, else its domain column, else (``hf://`` only)
    its ``source`` column, as in Tulu 3, else the file's name, or its folder's where the file is
    named for a split (``code/train.jsonl`` is ``code``). ``domain_map`` renames the outcome.

    Raises:
        DataError: a path or column is missing, or a row is malformed; names file and line.
        EmptySourceError: a file or split has no row, unless ``allow_empty``.
    """
    rows: list[Row] = []
    for source in sources:
        try:
            rows += draw(stream_rows(source, base_dir), source.limit, source.limit_per_domain, seed=seed)
        except EmptySourceError:
            if not allow_empty:
                raise
    return rows


def stream_rows(source: SourceConfig, base_dir: Path) -> Iterator[Row]:
    """Yield the rows of one source, without its limits, holding one at a time.

    Raises:
        DataError: see :func:`load_rows`.
    """
    parser: RowParser | None = None
    for record in stream_records(source, base_dir):
        if parser is None:
            parser = RowParser(
                row_format=_row_format(source, record),
                columns=source.columns,
                domain=source.domain,
                domain_map=source.domain_map,
                source_as_domain=source.path.startswith(HUB_PREFIX),
            )
        yield parser.parse(
            record.fields,
            where=record.where,
            default_domain=record.default_domain,
            default_id=record.default_id,
        )


def _row_format(source: SourceConfig, first: Record) -> RowFormat:
    if source.format != "auto":
        return source.format
    return detect_format(first.fields, source.columns, first.where)


def draw(rows: Iterable[Row], limit: int | None, limit_per_domain: int | None, *, seed: int) -> list[Row]:
    """Return at most ``limit`` rows, and at most ``limit_per_domain`` of each domain, in their given order.

    Holds no more rows than it returns per cut. Nested: see :func:`load_rows`.
    """
    if limit is None and limit_per_domain is None:
        return list(rows)
    heaps: defaultdict[str, list[tuple[int, int, Row]]] = defaultdict(list)
    capacity = limit if limit_per_domain is None else limit_per_domain
    for number, row in enumerate(rows):
        heap = heaps[row.domain if limit_per_domain is not None else ""]
        entry = (-_rank(row, seed), -number, row)  # numbers differ, so rows are never compared
        if len(heap) < (capacity or 0):
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    kept = [entry for heap in heaps.values() for entry in heap]
    if limit is not None:
        kept = heapq.nlargest(limit, kept, key=lambda entry: entry[:2])
    return [row for _, _, row in sorted(kept, key=lambda entry: -entry[1])]


def _rank(row: Row, seed: int) -> int:
    digest = hashlib.blake2b(content_digest(row), digest_size=8, salt=seed.to_bytes(16, "little"))
    return int.from_bytes(digest.digest(), "little")


# --- files ----------------------------------------------------------------------------------


def stream_records(source: SourceConfig, base_dir: Path) -> Iterator[Record]:
    """Yield the decoded records of a source; at least one, or a DataError.

    Raises:
        DataError: the path is missing or empty, or a file cannot be decoded.
    """
    if source.path.startswith(HUB_PREFIX):
        yield from _hub_records(source, base_dir)
        return
    for path in find_files(source.path, base_dir):
        read = _parquet_records if path.suffix in PARQUET_SUFFIXES else _json_records
        empty = True
        for line, fields in read(path, source.columns):
            empty = False
            yield Record(fields, f"{path}:{line}", _file_domain(path), f"{path.name}:{line}")
        if empty:
            raise EmptySourceError(
                f"{path}: the file is empty; expected at least one row. Fill it, or take it out of the data"
            )


def find_files(path: str, base_dir: Path) -> list[Path]:
    """Return the files behind a path, sorted: one file, a folder's (all levels) or a pattern's (``*/train.jsonl``).

    In folders, ``.json`` files count only where there is no JSONL and no Parquet file: beside
    those they are usually label lists and manifests. Hidden files do not count.

    Raises:
        DataError: nothing is there, the file's type is unknown, or a folder mixes splits.
    """
    path = str(Path(path).expanduser())
    full = base_dir / path
    known = JSONL_SUFFIXES + PARQUET_SUFFIXES
    if full.is_file():
        if full.suffix not in known:
            raise DataError(f"{full}: the file type {full.suffix!r} is not known; expected one of {', '.join(known)}")
        return [full]
    if full.is_dir():
        visible = (p for p in full.rglob("*") if not any(part.startswith(".") for part in p.relative_to(full).parts))
        files = _readable(visible)
        _refuse_mixed_splits(path, files)
    elif glob.has_magic(path):
        # Path.glob refuses absolute patterns.
        files = _readable(base_dir / found for found in glob.glob(path, root_dir=base_dir, recursive=True))  # noqa: PTH207
    else:
        siblings = [p.name for p in full.parent.iterdir()] if full.parent.is_dir() else []
        raise DataError(
            f"{full}: no such file or folder; relative paths start at {base_dir}.{did_you_mean(full.name, siblings)}"
        )
    if not files:
        raise DataError(f"{full}: no file here ends in one of {', '.join(known)}")
    return files


def _readable(paths: Iterable[Path]) -> list[Path]:
    files = sorted(path for path in paths if path.suffix in JSONL_SUFFIXES + PARQUET_SUFFIXES and path.is_file())
    return [path for path in files if path.suffix != ".json"] or files


def split_of(path: Path) -> str | None:
    """Return the split that a file is named for (``dev.jsonl``, ``train-00000-of-00002.parquet``), or None."""
    return SPLIT_NAMES.get(SHARD.sub("", path.stem))


def _refuse_mixed_splits(folder: str, files: Sequence[Path]) -> None:
    """Training on a folder's test file would go unnoticed, so a folder that holds several splits is refused."""
    named = {split: path for path in reversed(files) if (split := split_of(path))}
    if len(named) > 1:
        example = named.get("train", files[0])
        raise DataError(
            f"{folder}: the folder holds files of several splits ({', '.join(sorted(named))}); name one of them, or"
            f" several with a pattern such as {folder}/**/{example.name}"
        )


def _file_domain(path: Path) -> str:
    return path.parent.name if split_of(path) and path.parent.name else path.stem


def _json_records(path: Path, _: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                yield number, _decode(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decode(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start} ({error.reason}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: malformed JSON at column {error.colno}: {error.msg}; expected one JSON object a line"
            " (a pretty-printed file becomes that with `jq -c . FILE`, a list with `jq -c '.[]' FILE`)"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or very deep nesting
        raise DataError(f"{where}: JSON that cannot be read: {error}; expected one flat object a line") from error
    if isinstance(value, list):
        raise DataError(f"{where}: a JSON list; expected one object a line (`jq -c '.[]' FILE` makes that)")
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {json.dumps(value)[:40]}")
    return value


def _parquet_records(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = {*columns.model_dump().values(), *CHECK_COLUMNS, "source"}
            chosen = [name for name in names if name in wanted] or names
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=chosen):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


# --- the hub --------------------------------------------------------------------------------


def _hub_records(source: SourceConfig, base_dir: Path) -> Iterator[Record]:
    """``hf://org/name``, ``hf://org/name/subset``, or ``hf://`` and a folder in the hub's layout."""
    import datasets

    name = source.path.removeprefix(HUB_PREFIX)
    subset: str | None = None
    if (base_dir / name).is_dir():
        location = str(base_dir / name)
    else:
        parts = name.split("/", maxsplit=2)
        location, subset = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    try:
        loaded = datasets.load_dataset(location, subset, split=source.split, revision=source.revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise DataError(
            f"{source.path} (split {source.split!r}): cannot be loaded: {error}. Check the name on the hub, `split`,"
            " `revision`, the network and, for a private dataset, your login; a subset is named hf://org/name/subset"
        ) from error
    if len(loaded) == 0:
        raise EmptySourceError(f"{source.path} (split {source.split!r}): the split is empty")
    for number, fields in enumerate(loaded):
        where = f"{source.path}[{source.split}]:{number}"
        yield Record(fields, where, location.rpartition("/")[2], where)
