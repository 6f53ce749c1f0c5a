"""Look at a person's data before there is a recipe: what ``stillhouse init`` needs to know."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.data.rows import RowFormat, detect_format
from stillhouse.data.sources import HUB_PREFIX, find_files, stream_records, stream_rows
from stillhouse.recipe import Columns, SourceConfig

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class DataDescription:
    """What a path holds. Lengths are characters of all contents of a row."""

    path: str
    files: tuple[str, ...]
    """The files that were read; none for an ``hf://`` dataset."""
    format: RowFormat
    columns: tuple[str, ...]
    """Columns of the first row (of Parquet, those that Stillhouse can use)."""
    num_rows: int
    domains: dict[str, int]
    """Rows per domain, sorted by name."""
    num_answers: int
    """Rows with a gold answer for exact match."""
    length_percentiles: dict[int, int]
    """Characters at the 50th, 90th and 99th percentile."""
    longest: int


def describe_data(path: str, *, base_dir: Path, columns: Columns | None = None) -> DataDescription:
    """Read every row of a file, folder, pattern or ``hf://`` dataset and describe it.

    Raises:
        DataError: as training would: the path is missing, or a row is malformed.
    """
    source = SourceConfig(path=path, columns=columns or Columns())
    first = next(stream_records(source, base_dir))
    domains: Counter[str] = Counter()
    lengths: list[int] = []
    num_answers = 0
    for row in stream_rows(source, base_dir):
        domains[row.domain] += 1
        lengths.append(sum(map(len, row.contents)))
        num_answers += row.answer is not None
    return DataDescription(
        path=path,
        files=() if path.startswith(HUB_PREFIX) else tuple(map(str, find_files(path, base_dir))),
        format=detect_format(first.fields, source.columns, first.where),
        columns=tuple(first.fields),
        num_rows=len(lengths),
        domains=dict(sorted(domains.items())),
        num_answers=num_answers,
        length_percentiles={p: int(np.percentile(lengths, p)) for p in PERCENTILES},
        longest=max(lengths),
    )
