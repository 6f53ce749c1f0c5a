"""The assistant-only mask: content and end of turn, whatever the template and the content."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stillhouse.data.chat import ChatFormat, Rejection, role_order_problem
from stillhouse.data.rows import Message
from stillhouse.errors import DataError

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content BODY }}{% endgeneration %}REST"
    "{% else %}{{ m.content + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
)


def conversation(*turns: tuple[str, str]) -> list[Message]:
    return [Message(*turn) for turn in turns]


def targets(tokenizer: PreTrainedTokenizerFast, chat: ChatFormat, messages: Sequence[Message]) -> str:
    ids, mask = chat.encode(messages)
    return str(tokenizer.decode(ids[mask]))


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


TWO_TURNS = conversation(
    ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello."), ("user", "More"), ("assistant", "No.")
)


def test_targets_are_assistant_contents_and_ends_of_turn(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(tiny_tokenizer)
    ids, mask = chat.encode(TWO_TURNS)
    assert tiny_tokenizer.decode(ids[mask]) == "Hello.<|im_end|>No.<|im_end|>"
    assert ids.tolist() == tiny_tokenizer.apply_chat_template(as_dicts(TWO_TURNS), return_dict=True)["input_ids"]
    assert not mask[-1]  # the newline behind the last <|im_end|>
    assert chat.end_of_turn_ids == {tiny_tokenizer.eos_token_id}


# Not Cs: half a surrogate pair is no text. Special-token strings need "<|", which is excluded.
contents = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="|"), max_size=25).map(
    lambda text: text.replace("z", "\n").replace("y", "  ")
)
answers = st.tuples(st.sampled_from(["", " ", "\n", "\n\n", "  \n"]), contents.filter(str.strip), contents).map("".join)


@given(system=st.none() | contents, asked=contents, answered=answers, more=contents, last=answers)
@settings(max_examples=150, deadline=None)
def test_mask_decodes_to_any_content(
    tiny_tokenizer: PreTrainedTokenizerFast, system: str | None, asked: str, answered: str, more: str, last: str
) -> None:
    start = [] if system is None else [("system", system)]
    messages = conversation(*start, ("user", asked), ("assistant", answered), ("user", more), ("assistant", last))
    chat = ChatFormat(tiny_tokenizer)
    ids, mask = chat.encode(messages)
    # Tokens join to text only as a whole: half a character decodes to a replacement mark.
    assert tiny_tokenizer.decode(ids[mask]) == f"{answered}<|im_end|>{last}<|im_end|>"
    assert tiny_tokenizer.decode(ids) == tiny_tokenizer.apply_chat_template(as_dicts(messages), tokenize=False)
    prompt = chat.render_prompt(messages)
    assert ids[: len(prompt)].tolist() == prompt


def test_prompt_is_the_generation_prompt_of_transformers(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(tiny_tokenizer)
    expected = tiny_tokenizer.apply_chat_template(
        as_dicts(TWO_TURNS[:-1]), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert chat.render_prompt(TWO_TURNS) == expected
    assert chat.render_prompt(TWO_TURNS[:-1]) == expected  # a row without a gold turn


def test_batch_keeps_order_beside_rejected_rows(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(tiny_tokenizer)
    wrong = conversation(("assistant", "I begin"))
    first, middle, last = chat.encode_batch([TWO_TURNS, wrong, TWO_TURNS[1:3]])
    assert isinstance(middle, Rejection)
    assert middle.reason == "bad_role_order"
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert tiny_tokenizer.decode(last[0][last[1]]) == "Hello.<|im_end|>"


# --- roles and contents ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ("user assistant", None),
        ("system user assistant user assistant", None),
        ("user assistant tool tool assistant user assistant", None),
        ("assistant", "turn 1 is 'assistant' after 'start'; expected system or user"),
        ("system assistant", "turn 2 is 'assistant' after 'system'; expected user"),
        ("user user assistant", "turn 2 is 'user' after 'user'; expected assistant"),
        ("user system assistant", "turn 2 is 'system' after 'user'; expected assistant"),
        ("user assistant assistant", "turn 3 is 'assistant' after 'assistant'; expected tool or user"),
        ("user tool assistant", "turn 2 is 'tool' after 'user'; expected assistant"),
        ("user assistant user", "the last turn is 'user'; expected 'assistant'"),
        ("human assistant", "turn 1 is 'human' after 'start'; expected system or user"),
        ("", "the last turn is 'start'; expected 'assistant'"),
    ],
)
def test_role_order(roles: str, problem: str | None) -> None:
    assert role_order_problem([Message(role, "x") for role in roles.split()]) == problem


def test_tool_results_are_no_targets(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = conversation(("user", "2+2"), ("assistant", "calc"), ("tool", "4"), ("assistant", "Four."))
    assert targets(tiny_tokenizer, ChatFormat(tiny_tokenizer), messages) == "calc<|im_end|>Four.<|im_end|>"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (conversation(("user", "say <|im_end|>"), ("assistant", "no")), "special_token_in_content"),
        (conversation(("user", "hi"), ("assistant", "<|endoftext|>")), "special_token_in_content"),
        (conversation(("user", "hi"), ("assistant", " \n")), "empty"),
        (conversation(("user", "hi")), "bad_role_order"),
    ],
)
def test_unusable_conversations_are_rejected_with_a_reason(
    tiny_tokenizer: PreTrainedTokenizerFast, messages: list[Message], reason: str
) -> None:
    with pytest.raises(DataError, match=f"^{reason}: "):
        ChatFormat(tiny_tokenizer).encode(messages)


# --- templates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        ("", "{{ '<|im_end|>\n' }}"),  # the marker stops before the end of turn
        ("+ '<|im_end|>'", "{{ '\n' }}"),  # it ends with it, as it should
        ("+ '<|im_end|>\n'", ""),  # it runs past it
    ],
)
def test_generation_markers_end_with_the_end_of_turn(
    tiny_tokenizer: PreTrainedTokenizerFast, body: str, rest: str
) -> None:
    template = MARKED.replace("BODY", body).replace("REST", rest)
    chat = ChatFormat(tiny_tokenizer, template)
    ids, mask = chat.encode(TWO_TURNS)
    assert tiny_tokenizer.decode(ids[mask]) == "Hello.<|im_end|>No.<|im_end|>"
    assert chat.render_prompt(TWO_TURNS) == ids[: len(chat.render_prompt(TWO_TURNS))].tolist()
    if body == "+ '<|im_end|>'":  # the one form that transformers' own mask gets right
        encoded = tiny_tokenizer.apply_chat_template(
            as_dicts(TWO_TURNS), chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        assert encoded["input_ids"] == ids.tolist()
        assert encoded["assistant_masks"] == mask.astype(int).tolist()


def test_template_that_trims_contents(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    )
    messages = conversation(("user", " Hi "), ("assistant", "\n Hello. \n"))
    assert targets(tiny_tokenizer, ChatFormat(tiny_tokenizer, template), messages) == "Hello.<|im_end|>"


def test_template_with_spaces_around_contents_and_one_end(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Llama 2's shape: [INST] question [/INST] answer </s>."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    chat = ChatFormat(tiny_tokenizer, template)
    messages = conversation(("user", "Hi"), ("assistant", "how are"))
    # The tokenizer merges the template's space into " how": one token, and the model has to say it.
    assert targets(tiny_tokenizer, chat, messages) == " how are <|im_end|>"


def test_template_with_an_added_system_turn_and_thought_in_the_header(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    )
    chat = ChatFormat(tiny_tokenizer, template)
    messages = conversation(("user", "Hi"), ("assistant", "\nHello."))
    assert targets(tiny_tokenizer, chat, messages) == "\nHello.<|im_end|>"
    assert tiny_tokenizer.decode(chat.render_prompt(messages)).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_template_that_changes_a_content_rejects_that_row_alone(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
        "{% endfor %}"
    )
    chat = ChatFormat(tiny_tokenizer, template)
    assert targets(tiny_tokenizer, chat, TWO_TURNS[1:3]) == "Hello.<|im_end|>"
    with pytest.raises(DataError, match=r"refused_by_template: data.chat_template: it changes the content of turn 2"):
        chat.encode(conversation(("user", "Hi"), ("assistant", "<think>x</think>Hello.")))


def test_template_that_refuses_a_role_rejects_the_row(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"refused_by_template: .*System role not supported"):
        ChatFormat(tiny_tokenizer, template).encode(TWO_TURNS)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "with no special token"),
        ("{{ 'always the same' }}", "does not write each content once and in order"),
        ("{% for m in messages %}{{ m.content + m.content + eos_token }}{% endfor %}", "each content once"),
        ("{% for m in messages %}{{ m.content }", "data.chat_template cannot be used: .*data.chat_template"),
    ],
)
def test_broken_templates_are_refused_before_any_row(
    tiny_tokenizer: PreTrainedTokenizerFast, template: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ChatFormat(tiny_tokenizer, template)


def test_no_template_is_refused_with_a_way_out(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    with pytest.raises(DataError, match=r"has no chat template; give one as data\.chat_template"):
        ChatFormat(make_tokenizer(chat_template=None))


def test_templates_print_a_fixed_date(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    )
    ids, _ = ChatFormat(tiny_tokenizer, template).encode(TWO_TURNS)
    assert tiny_tokenizer.decode(ids).startswith("26 Jul 2024system:")


def test_real_rows_decode_to_their_answers(tiny_tokenizer: PreTrainedTokenizerFast, shared_data: Path) -> None:
    chat = ChatFormat(tiny_tokenizer)
    for path in sorted(shared_data.glob("chat/*/test.jsonl")):
        with path.open(encoding="utf-8") as file:
            rows = [[Message(**turn) for turn in json.loads(next(file))["messages"]] for _ in range(10)]
        for messages in rows:
            expected = "".join(f"{m.content}<|im_end|>" for m in messages if m.role == "assistant")
            assert targets(tiny_tokenizer, chat, messages) == expected
