"""What a text must look like: a regular expression, a JSON schema, a label of a set, or a function's word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError, RecipeError
from stillhouse.recipe import FormatConfig, JsonSchemaFormat, LabelsFormat, PredicateFormat, RegexFormat
from stillhouse.synthesis.words import missing

Predicate = Callable[[str], bool]
Verifier = Callable[[str, str], bool]
"""Given an input (without its frame) and an answer that has the format: whether the answer is right."""
VOTING_GROUP = "answer"


@dataclass(frozen=True)
class Format:
    """``problem`` says what is wrong with a text, or None; ``vote`` is what samples are compared by."""

    problem: Callable[[str], str | None]
    vote: Callable[[str], str]

    def without(self, special: Sequence[re.Pattern[str]]) -> Format:
        """The same for texts without a match of ``special``."""
        return replace(self, problem=lambda text: holds_special(text, special) or self.problem(text))


def holds_special(text: str, special: Sequence[re.Pattern[str]]) -> str | None:
    """Return in words which special token a text holds, or None."""
    found = next((match for pattern in special if (match := pattern.search(text))), None)
    return None if found is None else f"holds the special token {found.group()!r}"


def build_format(
    config: FormatConfig, field: str, *, own: Sequence[str], predicate: Predicate | None, base_dir: Path
) -> Format:
    """Return the check that ``config`` names; ``own`` are the seeds' texts, for a label set without labels.

    Raises RecipeError naming ``field`` for a predicate that is missing or not asked for and for a
    schema that is none, DataError for a label file that cannot be read, and
    MissingDependencyError without jsonschema.
    """
    if isinstance(config, PredicateFormat):
        if predicate is None:
            raise RecipeError(
                f"{field}.type=predicate: the function comes from Python (`synthesize(..., predicate=...)`); from the"
                " command line use regex, json_schema or labels"
            )
        return Format(lambda text: None if predicate(text) else "refused by the predicate", _folded)
    match config:
        case RegexFormat():
            return _regex(re.compile(config.pattern, re.DOTALL))
        case JsonSchemaFormat():
            return _json_schema(config.definition, field)
        case LabelsFormat():
            return _labels(_label_set(config, field, own, base_dir))


def _regex(pattern: re.Pattern[str]) -> Format:
    def problem(text: str) -> str | None:
        return None if pattern.fullmatch(text.strip()) else f"does not match {pattern.pattern!r}"

    def vote(text: str) -> str:
        found = pattern.fullmatch(text.strip())
        voting = found is not None and VOTING_GROUP in pattern.groupindex
        return _folded((found[VOTING_GROUP] or "") if voting and found else text)

    return Format(problem, vote)


def _json_schema(definition: dict[str, Any], field: str) -> Format:
    try:
        import jsonschema
    except ImportError as error:
        raise missing(f"{field}.type=json_schema", "jsonschema") from error
    kind = jsonschema.validators.validator_for(definition)
    try:
        kind.check_schema(definition)
    except jsonschema.SchemaError as error:
        raise RecipeError(f"{field}.definition: this is no JSON schema: {error.message}") from error
    validator = kind(definition)

    def problem(text: str) -> str | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"no JSON: {error}"
        found = next(iter(validator.iter_errors(value)), None)
        return None if found is None else f"{found.json_path}: {found.message}"

    def vote(text: str) -> str:
        try:
            return json.dumps(json.loads(text), sort_keys=True)
        except (ValueError, RecursionError):
            return text

    return Format(problem, vote)


def _labels(labels: frozenset[str]) -> Format:
    return Format(lambda text: None if text.strip() in labels else "not a label of the set", str.strip)


def _label_set(config: LabelsFormat, field: str, own: Sequence[str], base_dir: Path) -> frozenset[str]:
    if config.file is None:
        return frozenset(label.strip() for label in config.labels or own)
    path = base_dir / Path(config.file).expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{field}.file={config.file}: {path} cannot be read: {error}; give a JSON list") from error
    if not isinstance(found, list) or not found or not all(isinstance(label, str) for label in found):
        raise DataError(f"{field}.file={config.file}: {path} is not a JSON list of strings")
    return frozenset(label.strip() for label in (*found, *config.labels))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
