"""Batched generation equals one-by-one generation, and depends on nothing but its arguments."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.errors import DataError
from stillhouse.rollout.generate import Generation, GenerationSettings, generate, left_pad, plan_batches

PROMPTS = [[5, 7, 9], [1], [2, 4, 6, 8, 10, 12, 14], [3, 3], [200, 100, 50, 25, 12]]
NO_STOP: frozenset[int] = frozenset()


def ids(generations: list[Generation]) -> list[list[int]]:
    return [g.token_ids for g in generations]


def greedy_by_hand(model: LlamaForCausalLM, prompt: list[int], steps: int, num_ids: int) -> list[int]:
    """The argmax of the whole sequence's logits, again and again, without cache, batch or padding."""
    sequence = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            logits = model(input_ids=torch.tensor([sequence])).logits[0, -1, :num_ids]
            sequence.append(int(logits.argmax()))
    return sequence[len(prompt) :]


def test_batched_greedy_equals_plain_greedy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_ids: int
) -> None:
    expected = [greedy_by_hand(model, prompt, 9, num_ids) for prompt in PROMPTS]
    assert len({tuple(e) for e in expected}) == len(PROMPTS), "the prompts must matter for this test to say anything"
    for batch_tokens in (1, 30, 10_000):
        settings = GenerationSettings(9, NO_STOP, batch_tokens=batch_tokens)
        assert ids(generate(model, tokenizer, PROMPTS, settings, seed=0)) == expected


def test_text_is_the_decoded_ids(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    for generation in generate(model, tokenizer, PROMPTS, GenerationSettings(6, NO_STOP), seed=0):
        assert generation.text == tokenizer.decode(generation.token_ids)
        assert not generation.finished


def test_stops_at_the_first_stop_id(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    free = ids(generate(model, tokenizer, PROMPTS, GenerationSettings(9, NO_STOP), seed=0))
    stops = frozenset({free[0][2], free[2][4]})
    stopped = generate(model, tokenizer, PROMPTS, GenerationSettings(9, stops), seed=0)
    for whole, generation in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stops]
        content = whole[: ends[0]] if ends else whole
        assert generation.finished is bool(ends)
        assert generation.token_ids == (whole[: ends[0] + 1] if ends else whole)
        assert generation.text == tokenizer.decode(content)
    assert any(g.finished for g in stopped)
    assert not all(g.finished for g in stopped)


def test_sampling_depends_on_the_seed_alone(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = GenerationSettings(8, NO_STOP, temperature=1.0, batch_tokens=30)
    torch.manual_seed(1)
    first = ids(generate(model, tokenizer, PROMPTS, settings, seed=7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = ids(generate(model, tokenizer, PROMPTS, settings, seed=7))
    assert first == again
    assert torch.equal(state, torch.get_rng_state()), "the global generator must be as before"
    assert ids(generate(model, tokenizer, PROMPTS, settings, seed=8)) != first


def test_a_tiny_nucleus_is_greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    greedy = ids(generate(model, tokenizer, PROMPTS, GenerationSettings(5, NO_STOP), seed=0))
    nucleus = GenerationSettings(5, NO_STOP, temperature=1.0, top_p=1e-6)
    assert ids(generate(model, tokenizer, PROMPTS, nucleus, seed=3)) == greedy


def test_the_models_recommendation_has_no_effect(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    # transformers' logger does not pass its records on to the root logger.
    logging.getLogger("transformers").addHandler(caplog.handler)
    settings = GenerationSettings(7, NO_STOP)
    expected = ids(generate(model, tokenizer, PROMPTS, settings, seed=0))
    recommended = model.generation_config
    before = recommended.to_dict()
    try:
        recommended.do_sample, recommended.temperature, recommended.top_k = True, 5.0, 3
        recommended.repetition_penalty, recommended.max_length, recommended.eos_token_id = 9.0, 5, expected[0][0]
        recommended.suppress_tokens = expected[1]
        changed = recommended.to_dict()
        assert ids(generate(model, tokenizer, PROMPTS, settings, seed=0)) == expected
        assert model.generation_config is recommended
        assert recommended.to_dict() == changed
    finally:
        recommended.update(**before)
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records


def test_padding_rows_of_the_head_are_never_chosen(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_ids: int
) -> None:
    weight = model.lm_head.weight.data
    kept = weight[num_ids:].clone()
    try:
        # Two opposite rows: one of them has the largest logit for any hidden state.
        weight[num_ids], weight[num_ids + 1] = 1e3, -1e3
        generated = generate(model, tokenizer, PROMPTS, GenerationSettings(5, NO_STOP), seed=0)
        assert max(max(i) for i in ids(generated)) < num_ids
    finally:
        weight[num_ids:] = kept


def test_each_part_gets_its_mode_back(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.train()
    model.lm_head.eval()
    try:
        generate(model, tokenizer, [[1]], GenerationSettings(1, NO_STOP), seed=0)
        assert model.training
        assert model.model.layers[0].training
        assert not model.lm_head.training
    finally:
        model.eval()


def test_progress_reaches_the_end(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        model,
        tokenizer,
        PROMPTS,
        GenerationSettings(2, NO_STOP, batch_tokens=12),
        seed=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    # Budgets of 12 tokens: 7 + 2 -> 1 row, 5 + 2 -> 1 row, 3 + 2 -> 2 rows, 1 + 2 -> the last one.
    assert seen == [(1, 5), (2, 5), (4, 5), (5, 5)]


def test_no_prompts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    assert generate(model, tokenizer, [], GenerationSettings(2, NO_STOP), seed=0) == []


def test_bad_prompts_are_refused(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generate(model, tokenizer, [[1], []], GenerationSettings(2, NO_STOP), seed=0)
    with pytest.raises(DataError, match="prompt 0 has 60 tokens, and with max_new_tokens=5 exceeds the model's 64"):
        generate(model, tokenizer, [[1] * 60], GenerationSettings(5, NO_STOP), seed=0)
    assert len(generate(model, tokenizer, [[1] * 60], GenerationSettings(4, NO_STOP), seed=0)[0].token_ids) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"max_new_tokens": 0}, "max_new_tokens=0"), ({"temperature": -1}, "temperature=-1"), ({"top_p": 0}, "top_p=0")],
)
def test_bad_settings_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**{"max_new_tokens": 1, "stop_ids": NO_STOP, **arguments})


def test_left_padding() -> None:
    input_ids, mask = left_pad([[5, 6], [7]])
    assert input_ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 20), st.integers(1, 200))
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], new: int, budget: int) -> None:
    batches = plan_batches(lengths, new, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + new) <= budget
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


def by_text(text: str, stops: tuple[str, ...]) -> str:
    """What stands before the first of the strings, by splitting."""
    return min((text.split(s)[0] for s in stops), key=len)


def test_stops_at_the_first_stop_string(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    free = generate(model, tokenizer, PROMPTS, GenerationSettings(9, NO_STOP), seed=0)
    # One string within a token or across two, one that never comes.
    stops = (free[0].text[4:6], free[2].text[7:9], "never written")
    settings = GenerationSettings(9, NO_STOP, stop=stops)
    for batch_tokens in (1, 10_000):
        stopped = generate(model, tokenizer, PROMPTS, replace(settings, batch_tokens=batch_tokens), seed=0)
        for whole, generation in zip(free, stopped, strict=True):
            assert generation.text == by_text(whole.text, stops)
            assert generation.finished is (generation.text != whole.text)
            # The ids are the free ones up to the token that completes the string.
            assert generation.token_ids == whole.token_ids[: len(generation.token_ids)]
            assert generation.finished is any(s in tokenizer.decode(generation.token_ids) for s in stops)
            assert not any(s in tokenizer.decode(generation.token_ids[:-1]) for s in stops)
        assert any(g.finished for g in stopped)
        assert not all(g.finished for g in stopped)


def test_a_stop_id_before_a_stop_string_counts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    (free,) = generate(model, tokenizer, PROMPTS[:1], GenerationSettings(9, NO_STOP), seed=0)
    pieces = [tokenizer.decode([i]) for i in free.token_ids]
    late = GenerationSettings(9, frozenset({free.token_ids[1]}), stop=(pieces[4] + pieces[5],))
    (stopped,) = generate(model, tokenizer, PROMPTS[:1], late, seed=0)
    assert stopped.token_ids == free.token_ids[:2]
    assert stopped.text == pieces[0]


def test_generation_ends_when_every_row_has_its_stop_string(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    steps: list[int] = []
    handle = model.register_forward_hook(lambda *_: steps.append(1))
    try:
        (free,) = generate(model, tokenizer, PROMPTS[:1], GenerationSettings(20, NO_STOP), seed=0)
        first = tokenizer.decode(free.token_ids[:1])
        steps.clear()
        (stopped,) = generate(model, tokenizer, PROMPTS[:1], GenerationSettings(20, NO_STOP, stop=(first,)), seed=0)
    finally:
        handle.remove()
    assert stopped.text == ""
    assert len(steps) == 1


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="an empty stop string"):
        GenerationSettings(1, NO_STOP, stop=("\n", ""))
