"""What a row says about checking an answer besides one gold answer: choices, references, instructions, tests.

The columns have the names that public benchmarks gave them. ``choices`` and ``references`` count
where they are lists of strings: a file may use such a name for something else, which is no mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import DataError

CHECK_COLUMNS = (
    "choices",
    "references",
    "instruction_id_list",
    "kwargs",
    "prompt",
    "entry_point",
    "test",
    "test_list",
    "test_setup_code",
)

ArgumentValue = str | int | tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """One verifiable instruction (IFEval): its id, such as ``punctuation:no_comma``, and its arguments by name."""

    id: str
    arguments: tuple[tuple[str, ArgumentValue], ...] = ()


@dataclass(frozen=True)
class CodeTest:
    """How generated Python is tested.

    ``prompt`` is the beginning of the program that the model was asked to complete (HumanEval; else
    empty), ``setup`` runs first and ``test`` last; ``entry_point`` is the function that is asked for.
    """

    test: str
    setup: str = ""
    prompt: str = ""
    entry_point: str | None = None


@dataclass(frozen=True)
class Checks:
    """Everything of a row that an answer can be checked against, apart from ``answer``."""

    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    code: CodeTest | None = None


NO_CHECKS = Checks()


def parse_checks(record: Mapping[str, Any], where: str) -> Checks:
    """Return what the record carries, often :data:`NO_CHECKS`.

    Raises DataError for an ``instruction_id_list`` whose ``kwargs`` do not fit it.
    """
    if not any(record.get(name) for name in ("choices", "references", "instruction_id_list", "test", "test_list")):
        return NO_CHECKS
    return Checks(
        choices=_strings(record.get("choices")),
        references=_strings(record.get("references")),
        instructions=_instructions(record, where),
        code=_code_test(record),
    )


def _strings(value: Any) -> tuple[str, ...]:
    """The strings of a list of strings that a tokenizer can read; nothing of anything else."""
    if not isinstance(value, list) or not all(isinstance(item, str) and _encodable(item) for item in value):
        return ()
    return tuple(value)


def _encodable(text: str) -> bool:
    return text.isascii() or text == text.encode("utf-8", "ignore").decode()


def _instructions(record: Mapping[str, Any], where: str) -> tuple[Instruction, ...]:
    ids = record.get("instruction_id_list")
    if not ids:
        return ()
    kwargs: Any = record.get("kwargs")
    if not isinstance(ids, list) or not _are_objects(kwargs) or len(ids) != len(kwargs):
        raise DataError(
            f"{where}: 'instruction_id_list' and 'kwargs' must be lists of the same length, one object of arguments"
            " for each id (IFEval's form); mend the row or rename the columns"
        )
    return tuple(
        Instruction(
            str(name), tuple((key, _argument(v, where)) for key, v in sorted((given or {}).items()) if v is not None)
        )
        for name, given in zip(ids, kwargs, strict=True)
    )


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(item is None or isinstance(item, dict) for item in value)


def _argument(value: Any, where: str) -> ArgumentValue:
    if isinstance(value, bool) or not isinstance(value, str | int | float | list):
        raise DataError(f"{where}: an argument in 'kwargs' is {value!r}; expected a string, a number or a list of them")
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return int(value) if isinstance(value, float) else value


def _code_test(record: Mapping[str, Any]) -> CodeTest | None:
    """MBPP's ``test_list`` and ``test_setup_code``, or HumanEval's ``prompt``, ``entry_point`` and ``test``."""
    asserts = _strings(record.get("test_list"))
    if asserts:
        return CodeTest("\n".join(asserts), setup=str(record.get("test_setup_code") or ""))
    test, entry_point, prompt = (record.get(name) for name in ("test", "entry_point", "prompt"))
    if (
        isinstance(test, str)
        and isinstance(entry_point, str)
        and isinstance(prompt, str)
        and entry_point.isidentifier()
    ):
        return CodeTest(f"{test}\n\ncheck({entry_point})", prompt=prompt, entry_point=entry_point)
    return None
