"""Sequence-level KD: the teacher answers every training prompt before the stage begins.

Its answers are kept in ``generated/STAGE/`` by chunks, so that an interrupted run goes on with the
next chunk and a person can read what the student is taught. A server's answers are kept one by one
as well, for they are paid for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.data.prepare import Prepared, prepare
from stillhouse.data.rows import Message, Row, content_digest
from stillhouse.errors import DataError
from stillhouse.models.tokenizers import tokenizer_hash
from stillhouse.randomness import derive_seed
from stillhouse.recipe import DataConfig, RolloutConfig
from stillhouse.rollout.generator import Completion, Generator, SamplingSettings
from stillhouse.run_directory import write_text_atomic
from stillhouse.teachers.server_generation import ServedGenerator
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
        settings = SamplingSettings(rollout.max_new_tokens, rollout.temperature, rollout.top_p)

        def asked() -> Iterator[_Asked]:
            for n in mine:
                say(f"the teacher answers rows {n * CHUNK_ROWS + 1} to {n * CHUNK_ROWS + len(chunks[n])}")
                prompts = [list((row.messages or ())[:-1]) for row in chunks[n]]
                yield n, prompts, derive_seed(seed, "sequence-kd", n)

        for number, answers in _answers(load_generator(), asked(), settings):
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


def journal_path(folder: Path, rank: int) -> Path:
    """Where a process keeps a server's answers as they come, until their chunks are whole."""
    return folder / f"answers-rank-{rank:05d}.jsonl"


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


_Asked = tuple[int, list[list[Message]], int]
"""A chunk's number, its prompts and its seed."""


def _answers(
    generator: Generator, asked: Iterable[_Asked], settings: SamplingSettings
) -> Iterator[tuple[int, list[Completion]]]:
    """Yield each chunk's number and answers; a server goes on to the next chunk before the slowest answer of one is there."""
    if isinstance(generator, ServedGenerator):
        yield from generator.generate_each(asked, settings)
        return
    for number, prompts, seed in asked:
        yield number, generator.generate(prompts, settings, seed=seed)


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
