"""Rows: types are checked, and what is wrong is named with its place and a way out."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.data.rows import Message, Row, RowFormat, RowParser, content_digest, detect_format, prompt_digest
from stillhouse.errors import DataError
from stillhouse.recipe import Columns

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def parse(record: dict[str, Any], row_format: RowFormat = "messages", **options: Any) -> Row:
    settings: dict[str, Any] = {"columns": Columns(), "domain": None, "domain_map": {}, **options}
    parser = RowParser(row_format, **settings)
    return parser.parse(record, where="data.jsonl:3", default_domain="data", default_id="data.jsonl:3")


def conversation(*turns: tuple[str, str], domain: str = "d", row_id: str = "1") -> Row:
    return Row(tuple(Message(*turn) for turn in turns), None, domain, None, row_id, "f:1")


def test_messages_row_keeps_turns_answer_and_id() -> None:
    row = parse({"messages": TURNS, "domain": "chat", "answer": 42, "id": 7, "choices": ["a"]})
    assert row.messages == (Message("user", "Hi"), Message("assistant", "Hello"))
    assert (row.domain, row.answer, row.id, row.where) == ("chat", "42", "7", "data.jsonl:3")
    assert row.contents == ("Hi", "Hello")


def test_prompt_and_completion_become_two_turns_and_are_kept() -> None:
    row = parse({"prompt": "2+2=", "completion": " 4"}, "prompt_completion")
    assert row.messages == (Message("user", "2+2="), Message("assistant", " 4"))
    assert (row.prompt, row.completion, row.domain, row.id) == ("2+2=", " 4", "data", "data.jsonl:3")


def test_text_row() -> None:
    row = parse({"text": "Once"}, "text")
    assert (row.text, row.messages, row.contents) == ("Once", None, ("Once",))


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        ({"domain": "a"}, {"domain": "fixed"}, "fixed"),
        ({"domain": "a", "source": "b"}, {"source_as_domain": True}, "a"),
        ({"source": "b"}, {"source_as_domain": True}, "b"),
        ({"source": "b"}, {}, "data"),
        ({"domain": None}, {}, "data"),
        ({"domain": "a"}, {"domain_map": {"a": "x"}}, "x"),
        ({}, {"domain_map": {"data": "y"}}, "y"),
    ],
)
def test_domain_is_the_sources_then_the_columns_then_the_files(
    record: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    assert parse({"messages": TURNS, **record}, **options).domain == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"mesages": TURNS}, r"data.jsonl:3: column 'messages' is missing.*Did you mean 'mesages'\?"),
        ({"messages": None}, r"data.jsonl:3: column 'messages' is null"),
        ({"messages": "Hi"}, r"data.jsonl:3: 'messages' is a string; expected a non-empty list"),
        ({"messages": []}, r"data.jsonl:3: 'messages' is an empty list"),
        ({"messages": ["Hi"]}, r"messages\[0\] is a string"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no 'content'"),
        ({"messages": [{"from": "human", "value": "Hi"}]}, r"ShareGPT"),
        ({"messages": [{"role": "user", "content": None}]}, r"'?messages\[0\]\.content'? is null; expected a string"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, r"half a surrogate pair at character 0"),
        ({"messages": TURNS, "domain": 3}, r"'domain' is the number 3; expected a string"),
        ({"messages": TURNS, "domain": " "}, r"the domain is an empty string"),
        ({"messages": TURNS, "answer": ["a"]}, r"'answer' is a list; a gold answer is one string or number"),
        ({"messages": TURNS, "answer": True}, r"'answer' is the boolean true"),
    ],
)
def test_wrong_rows_name_place_and_field(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(record)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("id", "messages", "text", "prompt", "completion"), "messages"),
        (("prompt", "completion", "text"), "prompt_completion"),
        (("prompt", "text"), "text"),
    ],
)
def test_format_follows_the_columns(names: tuple[str, ...], expected: str) -> None:
    assert detect_format(names, Columns(), "f:1") == expected


def test_unknown_columns_list_what_is_there_and_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"f:1: columns \['lang', 'txt'\] fit no format.*Did you mean 'text'\?"):
        detect_format(["txt", "lang"], Columns(), "f:1")


def test_renamed_columns_are_found() -> None:
    columns = Columns(messages="conversations")
    assert detect_format(["conversations"], columns, "f:1") == "messages"
    assert parse({"conversations": TURNS}, columns=columns).contents == ("Hi", "Hello")


def test_content_digest_depends_on_roles_and_contents_alone() -> None:
    row = conversation(("user", "ab"), ("assistant", "c"))
    assert content_digest(row) == content_digest(
        conversation(("user", "ab"), ("assistant", "c"), domain="x", row_id="9")
    )
    assert content_digest(row) != content_digest(conversation(("user", "a"), ("assistant", "bc")))
    assert content_digest(row) != content_digest(conversation(("system", "ab"), ("assistant", "c")))


def test_prompt_digest_ignores_answer_case_and_white_space() -> None:
    row = conversation(("user", "What  is\nit?"), ("assistant", "a"))
    assert prompt_digest(row) == prompt_digest(conversation(("user", "what is IT?"), ("assistant", "b")))
    longer = conversation(("user", "What is it?"), ("assistant", "a"), ("user", "More"), ("assistant", "c"))
    assert prompt_digest(row) == prompt_digest(longer)
    with_system = conversation(("system", "Be kind"), ("user", "What is it?"), ("assistant", "a"))
    assert prompt_digest(row) != prompt_digest(with_system)
