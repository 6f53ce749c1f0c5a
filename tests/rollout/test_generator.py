"""A live model behind the one protocol of everything that generates."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.chat import ChatFormat
from stillhouse.data.rows import Message
from stillhouse.errors import DataError
from stillhouse.rollout.generate import GenerationSettings, generate
from stillhouse.rollout.generator import Generator, ModelGenerator, SamplingSettings

PROMPTS = [[Message("user", "Hi")], [Message("system", "Be brief."), Message("user", "Spell cat.")]]


@pytest.fixture
def generator(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> ModelGenerator:
    return ModelGenerator(tiny_model, tiny_tokenizer)


def test_answers_are_those_of_the_rollout_engine(
    generator: Generator, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = ChatFormat(tiny_tokenizer)
    plain = generate(
        tiny_model,
        tiny_tokenizer,
        [chat.render_prompt(prompt) for prompt in PROMPTS],
        GenerationSettings(12, chat.end_of_turn_ids),
        seed=0,
    )
    answers = generator.generate(PROMPTS, SamplingSettings(12), seed=0)
    assert [(a.text, a.finished, a.tokens) for a in answers] == [(g.text, g.finished, len(g.token_ids)) for g in plain]
    assert generator.generate([], SamplingSettings(12), seed=0) == []


def test_stop_strings_reach_the_engine(generator: Generator) -> None:
    (free,) = generator.generate(PROMPTS[:1], SamplingSettings(12), seed=0)
    (stopped,) = generator.generate(PROMPTS[:1], SamplingSettings(12, stop=(free.text[3:5],)), seed=0)
    assert stopped.text == free.text.split(free.text[3:5])[0]
    assert stopped.finished
    assert stopped.tokens <= free.tokens


def test_a_repeated_prompt_gets_different_samples(generator: Generator) -> None:
    settings = SamplingSettings(12, temperature=1.0)
    samples = generator.generate([PROMPTS[0]] * 4, settings, seed=3)
    assert len({s.text for s in samples}) > 1
    assert generator.generate([PROMPTS[0]] * 4, settings, seed=3) == samples


def test_the_fingerprint_follows_the_weights(
    generator: ModelGenerator, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = generator.fingerprint
    assert ModelGenerator(tiny_model, tiny_tokenizer).fingerprint == before
    with torch.no_grad():
        next(tiny_model.parameters()).add_(1)
    assert ModelGenerator(tiny_model, tiny_tokenizer).fingerprint != before


def test_a_prompt_without_room_is_refused(generator: Generator) -> None:
    with pytest.raises(DataError, match="exceeds the model's 512 positions"):
        generator.generate(PROMPTS, SamplingSettings(512), seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"stop": ("",)}, "an empty stop string"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**{"max_new_tokens": 1, **arguments})  # type: ignore[arg-type]
