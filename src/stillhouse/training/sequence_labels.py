"""Sequence-level KD: the teacher answers every training prompt before the stage begins.

Its answers are kept in ``generated/STAGE/`` by chunks, so that an interrupted run goes on with the
next chunk and a person can read what the student is taught.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.data.prepare import Prepared, prepare
from stillhouse.data.rows import Message, Row, content_digest
from stillhouse.errors import DataError
from stillhouse.models.tokenizers import tokenizer_hash
from stillhouse.randomness import derive_seed
from stillhouse.recipe import DataConfig, RolloutConfig
from stillhouse.rollout.generator import Generator, SamplingSettings
from stillhouse.run_directory import write_text_atomic
from stillhouse.training.distributed import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK_ROWS = 64


def label_rows(
    rows: Sequence[Row],
    load_generator: Callable[[], Generator],
    rollout: RolloutConfig,
    folder: Path,
    *,
    seed: int,
    world: World,
    say: Callable[[str], None],
) -> list[Row]:
    """Return the rows with their last assistant turn replaced by the teacher's answer.

    Chunks are shared out over the processes; each has its own seed, so the answers do not depend on
    their number. ``load_generator`` is called only if something is missing. Answers that are empty
    or were cut off by their length are left out: the student would learn to stop in mid-sentence.

    Raises DataError when nothing is left.
    """
    chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
    mine = [n for n in range(world.rank, len(chunks), world.size) if _read(folder, n, chunks[n]) is None]
    if mine:
        generator = load_generator()
        settings = SamplingSettings(rollout.max_new_tokens, rollout.temperature, rollout.top_p)
        for number in mine:
            say(f"the teacher answers rows {number * CHUNK_ROWS + 1} to {number * CHUNK_ROWS + len(chunks[number])}")
            prompts = [list((row.messages or ())[:-1]) for row in chunks[number]]
            answers = generator.generate(prompts, settings, seed=derive_seed(seed, "sequence-kd", number))
            lines = [
                _line(row, answer.text, finished=answer.finished)
                for row, answer in zip(chunks[number], answers, strict=True)
            ]
            write_text_atomic(_path(folder, number), "".join(lines))
    world.barrier()
    labelled: list[Row] = []
    for number, chunk in enumerate(chunks):
        answers_read = _read(folder, number, chunk)
        assert answers_read is not None, "every process has written its chunks"
        usable = [(row, a["answer"]) for row, a in zip(chunk, answers_read, strict=True) if a["finished"]]
        labelled += [_answered(row, text) for row, text in usable if text.strip()]
    if not labelled:
        raise DataError(
            f"{folder}: no answer of the teacher is usable: all are empty or cut off at "
            f"objective.rollout.max_new_tokens={rollout.max_new_tokens}; raise it"
        )
    say(f"{len(labelled)} of {len(rows)} answers of the teacher are used")
    return labelled


def prepare_labelled(
    labelled: Sequence[Row],
    original: Prepared,
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
    base_dir: Path,
) -> Prepared:
    """Tokenize the teacher's answers as the rows were; what was left out counts as rejected."""
    prepared = prepare(
        labelled,
        tokenizer,
        config,
        domains=original.documents.domains,
        tokenizer_hash=tokenizer_hash(tokenizer),
        base_dir=base_dir,
    )
    unusable = len(original.rows) - len(labelled)
    warning = f"{unusable} of {len(original.rows)} answers of the teacher were empty or cut off and were left out"
    if not unusable:
        return prepared
    return replace(prepared, report=replace(prepared.report, warnings=(*prepared.report.warnings, warning)))


def _answered(row: Row, text: str) -> Row:
    turns = (*(row.messages or ())[:-1], Message("assistant", text))
    return replace(row, messages=turns, completion=None if row.completion is None else text)


def _path(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:05d}.jsonl"


def _line(row: Row, text: str, *, finished: bool) -> str:
    value = {
        "row": content_digest(row).hex(),
        "prompt": [[m.role, m.content] for m in (row.messages or ())[:-1]],
        "answer": text,
        "finished": finished,
    }
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read(folder: Path, number: int, chunk: Sequence[Row]) -> list[dict[str, Any]] | None:
    """The answers of a chunk, or None when they are missing or belong to other rows."""
    path = _path(folder, number)
    if not path.exists():
        return None
    answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = [content_digest(row).hex() for row in chunk]
    return answers if [a["row"] for a in answers] == wanted else None
