"""One family of errors for people.

Every message says what is wrong, where (file and line, or the dotted recipe field) and how to
mend it. The command line prints the message and exits with code 2; the traceback is shown only
under ``--debug``. Mistakes of our own raise ordinary assertions instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class StillhouseError(Exception):
    """Base class: catch this to catch everything a user can mend."""


class RecipeError(StillhouseError, ValueError):
    """A recipe, a study or an override is wrong; the message names the dotted field."""


class DataError(StillhouseError, ValueError):
    """Rows cannot be read or used; the message names file and line."""


class EmptySourceError(DataError):
    """A file or split without a single row."""


class ModelError(StillhouseError, ValueError):
    """A model or tokenizer cannot be loaded, or does not fit the other one."""


class OutputError(StillhouseError, OSError):
    """The output place exists already, cannot be written or is too small."""


class ServerError(StillhouseError, RuntimeError):
    """A served model does not answer, refuses, or answers with something else; no message holds a key."""


class MissingDependencyError(StillhouseError, ImportError):
    """An optional package is needed; the message gives the command that installs it."""


class TrainingError(StillhouseError, RuntimeError):
    """Training cannot go on: a loss is not finite, or a checkpoint does not fit the recipe."""


class EvaluationError(StillhouseError, RuntimeError):
    """A model cannot be scored as it was asked for, on this machine."""


class SynthesisError(StillhouseError, RuntimeError):
    """No synthetic row could be made; the message says what became of the candidates."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest allowed name, or an empty string."""
    matches = get_close_matches(name, list(allowed), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
