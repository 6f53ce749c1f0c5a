"""Look at a person's data before there is a recipe: what ``stillhouse init`` needs to know."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.data.rows import RowFormat, detect_format
from stillhouse.data.sources import HUB_PREFIX, find_files, stream_records, stream_rows
from stillhouse.recipe import SourceConfig

FORMAT_NAMES: dict[RowFormat, str] = {
    "messages": "chat conversations",
    "prompt_completion": "prompts with completions",
    "text": "raw texts",
}


@dataclass(frozen=True)
class Inspection:
    """What a path holds. Lengths are characters of all contents of a row."""

    path: str
    files: tuple[Path, ...]
    """The files that were read; none for an ``hf://`` dataset."""
    format: RowFormat
    columns: tuple[str, ...]
    """Columns of the first row (of Parquet, those that Stillhouse can use)."""
    num_rows: int
    domains: dict[str, int]
    """Rows per domain, the largest first."""
    num_answers: int
    """Rows with a gold answer for exact match."""
    characters_median: int
    characters_p95: int
    characters_longest: int

    @property
    def has_answers(self) -> bool:
        """True if exact match can be scored on some row."""
        return self.num_answers > 0

    def headline(self) -> str:
        """Return one line: rows, format, domains."""
        domains = f"{len(self.domains)} domain{'s' * (len(self.domains) != 1)}"
        return f"{self.num_rows:,} {FORMAT_NAMES[self.format]} in {domains} from {self.path}"

    def describe(self) -> str:
        """Return a few lines for people."""
        lines = [self.headline()]
        if self.files:
            lines.append(f"  files: {len(self.files)} ({self.files[0].name}{', ...' * (len(self.files) > 1)})")
        lines.append(f"  columns: {', '.join(self.columns)}")
        lines.append(f"  domains: {', '.join(f'{name} {count:,}' for name, count in self.domains.items())}")
        lines.append(
            f"  characters a row: median {self.characters_median:,}, 95th percentile {self.characters_p95:,},"
            f" longest {self.characters_longest:,}"
        )
        lines.append(f"  rows with a gold answer: {self.num_answers:,}")
        return "\n".join(lines)


def inspect_source(path: str, *, base_dir: Path) -> Inspection:
    """Read every row of a file, folder, pattern or ``hf://`` dataset and describe it; keeps none.

    Raises:
        DataError: as training would: the path is missing, or a row is malformed.
    """
    source = SourceConfig(path=path)
    first = next(stream_records(source, base_dir))
    domains: Counter[str] = Counter()
    lengths: list[int] = []
    num_answers = 0
    for row in stream_rows(source, base_dir):
        domains[row.domain] += 1
        lengths.append(sum(map(len, row.contents)))
        num_answers += row.answer is not None
    return Inspection(
        path=path,
        files=() if path.startswith(HUB_PREFIX) else tuple(find_files(path, base_dir)),
        format=detect_format(first.fields, source.columns, first.where),
        columns=tuple(first.fields),
        num_rows=len(lengths),
        domains=dict(sorted(domains.items(), key=lambda item: (-item[1], item[0]))),
        num_answers=num_answers,
        characters_median=int(np.percentile(lengths, 50)),
        characters_p95=int(np.percentile(lengths, 95)),
        characters_longest=max(lengths),
    )
