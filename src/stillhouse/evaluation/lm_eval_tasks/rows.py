"""Rows of our own files as documents of lm-evaluation-harness, and the scores that need our checkers.

The YAML files beside this one name these functions; ``data_dir`` comes from ``--data-dir`` (or, with
the harness's own command, from ``--metadata '{"data_dir": ...}'``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stillhouse.data.rows import Row
from stillhouse.data.sources import load_rows
from stillhouse.errors import DataError
from stillhouse.evaluation.held_out import gold_text, prompt_text
from stillhouse.evaluation.ifeval.check import check_arguments, instruction_parts
from stillhouse.evaluation.metrics.choices import question_of
from stillhouse.evaluation.metrics.code import run_tests
from stillhouse.evaluation.metrics.sandbox import Sandbox
from stillhouse.evaluation.metrics.table import has_gold
from stillhouse.recipe import SourceConfig

SPLIT, FEWSHOT_SPLIT = "test", "dev"
_rows: dict[tuple[str, int], Row] = {}
"""Rows by file and number: documents are JSON, and checks are not."""


def load(data_dir: str | None = None, file: str = "", fewshot_file: str | None = None, **_: Any) -> dict[str, Any]:
    """Return the datasets of one task: ``DATA_DIR/FILE.jsonl``, and another file for worked examples.

    Raises DataError without a folder, and as reading rows does.
    """
    from datasets import Dataset

    if data_dir is None:
        raise DataError(f"the task reads {file}.jsonl from your own files; say where they are with --data-dir")
    named = {SPLIT: file, **({} if fewshot_file is None else {FEWSHOT_SPLIT: fewshot_file})}
    return {split: Dataset.from_list(_documents(Path(data_dir) / f"{name}.jsonl")) for split, name in named.items()}


def _documents(path: Path) -> list[dict[str, Any]]:
    rows = load_rows([SourceConfig(path=str(path))], seed=0, base_dir=Path.cwd())
    _rows.update({(str(path), number): row for number, row in enumerate(rows)})
    return [{"file": str(path), "number": number, **_document(row)} for number, row in enumerate(rows)]


def _document(row: Row) -> dict[str, Any]:
    """``question`` is the request without the list of choices, ``prompt`` the request as it stands."""
    check_arguments(row.checks.instructions, row.where)
    document = {"question": question_text(row), "prompt": prompt_text(row), "answer": row.answer or ""}
    document["gold"] = gold_text(row) if has_gold(row) else ""
    if row.checks.choices:
        asked = question_of(row)
        return {**document, "choices": list(row.checks.choices), "target": asked.correct}
    return document


def question_text(row: Row) -> str:
    """Return the last request without its list of choices and without the line on how to answer."""
    text = prompt_text(row)
    if row.checks.choices:
        text = text.split(f"\nA. {row.checks.choices[0]}\n")[0]
        kept = [line for line in text.split("\n") if not line.startswith("Answer ")]
        text = "\n".join(kept)
    return text.strip()


def row_of(document: dict[str, Any]) -> Row:
    """Return the row that a document was made from."""
    return _rows[document["file"], document["number"]]


def follow_instructions(document: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score one answer with our own checkers; no download is needed."""
    parts = instruction_parts(results[0], row_of(document).checks.instructions)
    return {name: (part.value, part.weight) for name, part in parts.items()}


def pass_tests(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Run one answer on its row's tests in our sandbox; the harness asks for leave first (``unsafe_code``)."""
    test = row_of(document).checks.code
    if test is None:
        raise DataError(f"{row_of(document).where}: the row carries no tests for code")
    return {"pass_at_1": float(run_tests(results[0], test, Sandbox()).passed)}


def ratio(items: Iterable[tuple[float, float]]) -> float:
    """Return the sum of values over the sum of weights."""
    pairs = list(items)
    return sum(value for value, _ in pairs) / sum(weight for _, weight in pairs)
