"""Prompts for inputs and labels, what is read from replies, and rows that teach a writer."""

from __future__ import annotations

import pytest
from scripted import ANIMALS, INSTRUCTION

from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError
from stillhouse.synthesis.prompting import (
    FIRST,
    NEXT,
    input_prompt,
    label_prompt,
    make_input_writer_rows,
    read_input,
)
from stillhouse.synthesis.seeds import seed_domains


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (" a dog\n", "a dog"),
        ("Example 9:\na dog\nwhich barks", "a dog\nwhich barks"),
        ("New example: a dog", "a dog"),
        ('"a dog"', "a dog"),
        ("“a dog”", "a dog"),
        ('"a" dog', '"a" dog'),
        ("'", "'"),
        ("For example: a dog", "For example: a dog"),
        ("", ""),
    ],
)
def test_what_is_read_from_a_reply(reply: str, text: str) -> None:
    assert read_input(reply) == text


def test_examples_are_earlier_answers() -> None:
    assert input_prompt(["one", "two"], " Things.\n") == [
        Message("user", f"Things.\n\n{FIRST}"),
        Message("assistant", "one"),
        Message("user", NEXT),
        Message("assistant", "two"),
        Message("user", NEXT),
    ]
    assert input_prompt(["one"], None)[0].content == FIRST


def test_labels_are_asked_for_in_the_frame(seeds: list[Row]) -> None:
    domain = seed_domains(seeds, frame=None, needed=1)["pets"]
    assert label_prompt(domain, "an owl", "Be brief.", domain.seeds[:1]) == [
        Message("system", "Be brief."),
        Message("user", INSTRUCTION + ANIMALS[0][0]),
        Message("assistant", "yes"),
        Message("user", INSTRUCTION + "an owl"),
    ]


def test_writer_rows_ask_as_synthesis_does_and_answer_with_a_human_input(seeds: list[Row]) -> None:
    domains = list(seed_domains(seeds, frame=None, needed=1).values())
    rows = make_input_writer_rows(domains, description="Animals.", num_examples=3, rows_per_seed=2, seed=1)
    assert len(rows) == 16
    assert len({row["id"] for row in rows}) == 16
    assert len({str(row["messages"]) for row in rows}) == 16, "the same seed sees other examples"
    texts = [text for text, _ in ANIMALS]
    for row in rows:
        *shown, answer = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        assert answer in texts
        assert len({answer, *shown}) == 4
        assert set(shown) <= set(texts)
    assert rows == make_input_writer_rows(domains, description="Animals.", num_examples=3, rows_per_seed=2, seed=1)


def conversation(*turns: tuple[str, str]) -> Row:
    return Row(tuple(Message(*t) for t in turns), None, "d", None, "i", "f.jsonl:4")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Row(None, "raw", "d", None, "i", "f.jsonl:4"), "f.jsonl:4: .* this row is raw text"),
        (
            conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
            "this row is turns of user,",
        ),
        (conversation(("user", " "), ("assistant", "b")), "the question or the answer of this seed is empty"),
    ],
)
def test_rows_that_are_no_seeds(bad: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        seed_domains([bad], frame=None, needed=1)


def test_a_given_frame_must_fit_every_seed(seeds: list[Row]) -> None:
    found = seed_domains(seeds, frame="Is this animal{input}", needed=1)["pets"]
    assert found.seeds[0].text.startswith(" a pet?")
    with pytest.raises(DataError, match=r"human.jsonl:1: the input does not have synthesis.frame"):
        seed_domains(seeds, frame="Other: {input}", needed=1)


def test_system_turns_stay_with_their_seeds() -> None:
    row = conversation(("system", "Be brief."), ("user", "a"), ("assistant", "b"))
    (seed,) = seed_domains([row], frame=None, needed=1)["d"].seeds
    assert (seed.system, seed.text, seed.answer) == ("Be brief.", "a", "b")
