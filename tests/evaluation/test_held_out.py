"""Which rows are generated for, and what a model is asked."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from stillhouse.data.chat import ChatFormat
from stillhouse.data.prepare import Prepared
from stillhouse.data.rows import Message, Row
from stillhouse.evaluation.held_out import (
    build_held_out,
    gold_text,
    prompt_encoder,
    prompt_text,
    spread_over_domains,
    stop_ids,
)
from stillhouse.recipe import GenerationConfig


def test_rows_are_drawn_in_turn_from_each_domain(rows: list[Row]) -> None:
    # 3 choice, 6 math, 4 talk: eight rows are 3, 3, 2; all thirteen are everything, each once.
    eight = spread_over_domains(rows, 8, seed=0, purpose="test")
    assert [row.domain for row in eight] == ["choice", "math", "talk"] * 2 + ["choice", "math"]
    assert spread_over_domains(rows, 5, seed=0, purpose="test") == eight[:5]
    assert sorted(r.id for r in spread_over_domains(rows, 99, seed=0, purpose="test")) == sorted(r.id for r in rows)
    assert spread_over_domains([], 4, seed=0, purpose="test") == ()


def test_the_draw_depends_on_the_seed_alone(rows: list[Row]) -> None:
    assert spread_over_domains(rows, 8, seed=0, purpose="test") == spread_over_domains(rows, 8, seed=0, purpose="test")
    assert len({spread_over_domains(rows, 8, seed=seed, purpose="test") for seed in range(5)}) > 1


def test_scored_rows_have_answers_and_raw_text_is_left_out(
    prepared: Prepared, tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat
) -> None:
    text = Row(None, "plain text", "text", None, "t", "rows.jsonl:1")
    with_text = replace(prepared, rows=[*prepared.rows, text])
    config = GenerationConfig(rows=50, samples=50)
    held_out = build_held_out(with_text, tokenizer, chat_format, config, seed=0)
    assert {row.domain for row in held_out.scored} == {"math", "choice"}
    assert len(held_out.scored) == 9
    assert {row.domain for row in held_out.shown} == {"math", "choice", "talk"}
    assert held_out.end_of_turn_ids == frozenset({tokenizer.eos_token_id})
    assert held_out.byte_counts.shape == (len(prepared.documents),)
    nothing = build_held_out(with_text, tokenizer, chat_format, GenerationConfig(rows=0, samples=0), seed=0)
    assert nothing.scored == nothing.shown == ()


def test_a_chat_prompt_is_what_training_conditions_on(
    prepared: Prepared, tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat
) -> None:
    encode = prompt_encoder(tokenizer, chat_format)
    for document, row_number in zip(prepared.documents, prepared.documents.rows, strict=True):
        first_target = int(document.loss_mask.argmax())
        assert encode(prepared.rows[row_number]) == document.input_ids[:first_target].tolist()


def test_a_plain_prompt_without_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = (Message("user", "the dog"), Message("assistant", " fox"))
    row = Row(turns, None, "a", None, "1", "rows.jsonl:1", prompt="the dog", completion=" fox")
    assert tokenizer.decode(prompt_encoder(tokenizer, None)(row)) == "the dog"
    assert stop_ids(tokenizer, None) == frozenset({tokenizer.eos_token_id})


def test_prompts_for_people() -> None:
    user, said = Message("user", "Hello"), Message("assistant", "Hi")
    one = Row((user, said), None, "a", None, "1", "rows.jsonl:1")
    two = Row(
        (Message("system", "Be kind"), user, said, user, Message("assistant", "Bye")), None, "a", None, "1", "r:1"
    )
    assert (prompt_text(one), gold_text(one)) == ("Hello", "Hi")
    assert prompt_text(two) == "system: Be kind\n\nuser: Hello\n\nassistant: Hi\n\nuser: Hello"
    assert gold_text(two) == "Bye"
