"""Compare two models on the rows that both were scored on, from the files that ``--samples-out`` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError
from stillhouse.evaluation.bootstrap import DRAWS, SEED, PairedDifference, paired_bootstrap
from stillhouse.evaluation.scores import Item

ItemKey = tuple[str, str, str, int]
"""Domain, id and prompt, and which of several rows with all three it is."""


def compare_samples(a: Path, b: Path, *, draws: int = DRAWS, seed: int = SEED) -> dict[str, PairedDifference]:
    """Return a minus b for every score that both files have, over the rows that both have.

    Scores of instructions count each row once, whatever the number of its instructions. Raises
    DataError where a file cannot be read or the two share no scored row.
    """
    return _compare(read_scores(a), read_scores(b), f"{a} and {b}", draws, seed)


def compare_items(items: Sequence[Item], other: Path) -> dict[str, PairedDifference]:
    """Return this model's items minus those of a samples file, as :func:`compare_samples` does."""
    return _compare(
        _keyed([item.to_json() for item in items]), read_scores(other), f"this data and {other}", DRAWS, SEED
    )


def _compare(
    a: dict[ItemKey, dict[str, float]], b: dict[ItemKey, dict[str, float]], names: str, draws: int, seed: int
) -> dict[str, PairedDifference]:
    differences = {}
    for name in dict.fromkeys(name for scores in a.values() for name in scores):
        shared = [key for key in a if name in a[key] and name in b.get(key, {})]
        if shared:
            differences[name] = paired_bootstrap(
                [a[key][name] for key in shared], [b[key][name] for key in shared], draws, seed
            )
    if not differences:
        raise DataError(f"{names} have no scored row in common; evaluate both models on the same data")
    return differences


def read_scores(path: Path) -> dict[ItemKey, dict[str, float]]:
    """Return the scores of each row of a samples file.

    Raises DataError naming file and line for a line that is not one of ours.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; give a file that --samples-out wrote") from error
    items = []
    for number, line in enumerate(lines, start=1):
        try:
            item = json.loads(line)
            _keyed([item])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}:{number}: not a line that --samples-out wrote ({error!r})") from error
        items.append(item)
    return _keyed(items)


def _keyed(items: Iterable[dict[str, Any]]) -> dict[ItemKey, dict[str, float]]:
    found: dict[ItemKey, dict[str, float]] = {}
    met: Counter[tuple[str, str, str]] = Counter()
    for item in items:
        key = (str(item["domain"]), str(item["id"]), str(item["prompt"]))
        found[(*key, met[key])] = {str(name): float(value) for name, value in item["scores"].items()}
        met[key] += 1
    return found
