"""Rows: what a person's file says, before any tokenizer has seen it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.data.checkable import NO_CHECKS, Checks, parse_checks
from stillhouse.errors import DataError, did_you_mean
from stillhouse.recipe import Columns

RowFormat = Literal["messages", "prompt_completion", "text"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One usable row of a file.

    Exactly one of ``messages`` and ``text`` is set. A prompt-and-completion row is a conversation
    of two turns; it keeps ``prompt`` and ``completion`` for tokenizers without a chat template.
    ``answer`` is the gold answer for exact match, ``checks`` what else an answer can be scored
    against; ``where`` is ``file:line`` for messages.
    """

    messages: tuple[Message, ...] | None
    text: str | None
    domain: str
    answer: str | None
    id: str
    where: str
    prompt: str | None = None
    completion: str | None = None
    checks: Checks = NO_CHECKS

    @property
    def is_question(self) -> bool:
        """Whether the row ends without an answer, and says how one is checked: IFEval's do."""
        unanswered = bool(self.messages) and (self.messages or ())[-1].role == "user"
        return unanswered and bool(self.checks.instructions or self.checks.references or self.checks.code)

    @property
    def contents(self) -> tuple[str, ...]:
        """Every string of the row that reaches the model."""
        return (self.text,) if self.text is not None else tuple(m.content for m in self.messages or ())


def content_digest(row: Row) -> bytes:
    """Return 16 bytes that depend on the row's roles and contents alone: not on file, id or domain."""
    if row.text is not None:
        return _digest(("text", row.text))
    return _digest(part for message in row.messages or () for part in (message.role, message.content))


def prompt_digest(row: Row) -> bytes:
    """Return 16 bytes that rows with the same prompt share; case and white space do not count.

    The prompt is everything before the first assistant turn, so two conversations that begin with
    the same question share it however they go on. Raw text is its own prompt.
    """
    if row.text is not None:
        return _digest(("text", _folded(row.text)))
    parts: list[str] = []
    for message in row.messages or ():
        if message.role == "assistant":
            break
        parts += [message.role, _folded(message.content)]
    return _digest(parts)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(parts: Iterable[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))  # so that ("ab", "c") is not ("a", "bc")
        digest.update(data)
    return digest.digest()


def required_columns(row_format: RowFormat, columns: Columns) -> tuple[str, ...]:
    """Return the columns that a format cannot do without, under the user's names."""
    match row_format:
        case "messages":
            return (columns.messages,)
        case "prompt_completion":
            return (columns.prompt, columns.completion)
        case "text":
            return (columns.text,)


def detect_format(names: Iterable[str], columns: Columns, where: str) -> RowFormat:
    """Return the format that the columns of a row show; messages win over prompts, prompts over text.

    Raises:
        DataError: no format fits; the message lists the columns found and the nearest names.
    """
    found = set(names)
    formats: tuple[RowFormat, ...] = ("messages", "prompt_completion", "text")
    for row_format in formats:
        if found.issuperset(required_columns(row_format, columns)):
            return row_format
    wanted = [name for row_format in formats for name in required_columns(row_format, columns)]
    hints = [did_you_mean(name, wanted) for name in sorted(found)]
    raise DataError(
        f"{where}: columns {sorted(found)} fit no format; expected {columns.messages!r}, or {columns.prompt!r} with "
        f"{columns.completion!r}, or {columns.text!r}. Name yours under `columns` of the data source"
        f" (columns: {{messages: conversations}}).{next((hint for hint in hints if hint), '')}"
    )


@dataclass(frozen=True)
class RowParser:
    """Turns one decoded record into a :class:`Row`, or says in which file and line it is wrong."""

    row_format: RowFormat
    columns: Columns
    domain: str | None
    domain_map: Mapping[str, str]
    source_as_domain: bool = False
    """Use a ``source`` column (Tulu 3) where there is no domain column."""

    def parse(self, record: Mapping[str, Any], *, where: str, default_domain: str, default_id: str) -> Row:
        """Return the row; ``default_domain`` and ``default_id`` serve where the columns are absent or null.

        Raises:
            DataError: a column is missing or has the wrong type.
        """
        for name in required_columns(self.row_format, self.columns):
            if record.get(name) is None:
                state = "is null" if name in record else "is missing"
                hint = did_you_mean(name, record)
                raise DataError(
                    f"{where}: column {name!r} {state} (columns here: {sorted(record)}); every row of a "
                    f"{self.row_format!r} source needs it. Mend the row, or set `columns` or `format` of the"
                    f" source.{hint}"
                )
        text: str | None = None
        prompt: str | None = None
        completion: str | None = None
        messages: tuple[Message, ...] | None = None
        match self.row_format:
            case "text":
                text = _string(record, self.columns.text, where)
            case "messages":
                messages = _messages(record[self.columns.messages], self.columns.messages, where)
            case "prompt_completion":
                prompt = _string(record, self.columns.prompt, where)
                completion = _string(record, self.columns.completion, where)
                messages = (Message("user", prompt), Message("assistant", completion))
        return Row(
            messages=messages,
            text=text,
            domain=self._domain(record, where, default_domain),
            answer=self._answer(record, where),
            id=self._id(record, default_id),
            where=where,
            prompt=prompt,
            completion=completion,
            checks=parse_checks(record, where),
        )

    def _domain(self, record: Mapping[str, Any], where: str, default: str) -> str:
        if self.domain is not None:
            name = self.domain
        elif record.get(self.columns.domain) is not None:
            name = _string(record, self.columns.domain, where)
        elif self.source_as_domain and record.get("source") is not None:
            name = _string(record, "source", where)
        else:
            name = default
        name = self.domain_map.get(name, name)
        if not name.strip():
            raise DataError(f"{where}: the domain is an empty string; name it, or set `domain` of the source")
        return name

    def _answer(self, record: Mapping[str, Any], where: str) -> str | None:
        value = record.get(self.columns.answer)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(
                f"{where}: {self.columns.answer!r} is {_kind(value)}; a gold answer is one string or number. Rename the"
                " column, or give `columns: {answer: ...}` of the source another name"
            )
        return _encodable(str(value), self.columns.answer, where)

    def _id(self, record: Mapping[str, Any], default: str) -> str:
        value = record.get(self.columns.id)
        return default if value is None else str(value)


def _messages(value: Any, column: str, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: {column!r} is {_kind(value)}; expected a non-empty list of"
            ' {"role": ..., "content": ...} objects'
        )
    messages = []
    for number, turn in enumerate(value):
        name = f"{column}[{number}]"
        if not isinstance(turn, dict):
            raise DataError(f'{where}: {name} is {_kind(turn)}; expected {{"role": ..., "content": ...}}')
        for key in ("role", "content"):
            if key not in turn:
                hint = did_you_mean(key, turn) or (
                    " (ShareGPT's from/value: rename them to role/content)" if "from" in turn else ""
                )
                raise DataError(f"{where}: {name} has no {key!r} (keys: {sorted(turn)}).{hint}")
        messages.append(
            Message(_string(turn, "role", where, f"{name}.role"), _string(turn, "content", where, f"{name}.content"))
        )
    return tuple(messages)


def _string(record: Mapping[str, Any], column: str, where: str, name: str | None = None) -> str:
    value = record[column]
    if not isinstance(value, str):
        raise DataError(f"{where}: {name or column!r} is {_kind(value)}; expected a string")
    return _encodable(value, name or column, where)


def _encodable(value: str, name: str, where: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {name!r} holds half a surrogate pair at character {error.start}, which no tokenizer can"
                " read; replace it (a \\ud83d without its partner is usually a cut emoji)"
            ) from error
    return value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case []:
            return "an empty list"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"
