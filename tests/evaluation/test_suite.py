"""The whole evaluation of a tiny model: the schema, and numbers that its parts give too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.batch import Batch
from stillhouse.data.chat import ChatFormat
from stillhouse.data.prepare import Prepared
from stillhouse.data.rows import Message
from stillhouse.evaluation.assess import EvaluationSettings
from stillhouse.evaluation.exact_match import exact_match
from stillhouse.evaluation.held_out import HeldOut, build_held_out, prompt_encoder
from stillhouse.evaluation.nll import evaluate_nll
from stillhouse.evaluation.suite import Evaluation, Sample, evaluate_model, side_by_side
from stillhouse.models.head import split_model
from stillhouse.recipe import GenerationConfig
from stillhouse.rollout.generate import GenerationSettings, generate
from stillhouse.teachers.protocol import DenseTargets, Projection


@pytest.fixture(scope="module")
def held_out(prepared: Prepared, tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat) -> HeldOut:
    config = GenerationConfig(rows=6, samples=4)
    return build_held_out(prepared, tokenizer, chat_format, config, seed=3)


@pytest.fixture(scope="module")
def settings(vocab_size: int) -> EvaluationSettings:
    return EvaluationSettings("cpu", micro_batch_tokens=128, head_chunk=32, max_new_tokens=6, vocab_size=vocab_size)


def test_numbers_and_schema(
    other_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat,
    held_out: HeldOut,
    settings: EvaluationSettings,
    vocab_size: int,
) -> None:
    evaluation, samples = evaluate_model(other_model, tokenizer, chat_format, held_out, settings, seed=0)
    expected = evaluate_nll(
        split_model(other_model),
        held_out.documents,
        end_of_turn_ids=held_out.end_of_turn_ids,
        byte_counts=held_out.byte_counts,
        micro_batch_tokens=128,
        head_chunk=32,
        device="cpu",
        vocab_size=vocab_size,
    )
    assert evaluation.likelihood == expected
    data = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert set(data) == {"nll", "perplexity", "end_of_turn_nll", "exact_match", "scores", "domains"}
    assert set(data["scores"]) == {"exact_match"}
    assert set(data["scores"]["exact_match"]) == {"score", "n", "interval"}
    assert data["scores"]["exact_match"]["score"] == data["exact_match"]["score"]
    assert set(data["exact_match"]) == {"score", "n", "by_domain"}
    assert set(data["exact_match"]["by_domain"]) == {"math", "choice"}
    assert data["exact_match"]["n"] == 6
    assert set(data["domains"]) == {"math", "choice", "talk"}
    assert set(data["domains"]["talk"]) == {
        "nll",
        "perplexity",
        "bits_per_byte",
        "end_of_turn_nll",
        "content_tokens",
        "end_of_turn_tokens",
        "documents",
    }
    assert Evaluation.from_json(data) == evaluation
    assert [sample.domain for sample in samples] == [row.domain for row in held_out.shown]


def test_answers_are_the_greedy_continuations(
    other_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat,
    held_out: HeldOut,
    settings: EvaluationSettings,
) -> None:
    encode = prompt_encoder(tokenizer, chat_format)
    _, samples = evaluate_model(other_model, tokenizer, chat_format, held_out, settings, seed=0)
    generation = GenerationSettings(6, frozenset({tokenizer.eos_token_id}))
    for row, sample in zip(held_out.shown, samples, strict=True):
        assert sample.text == generate(other_model, tokenizer, [encode(row)], generation, seed=0)[0].text
    # Let the rows that are shown have the answers that the model gives: then all of them match.
    golds = [replace(row, answer=sample.text) for row, sample in zip(held_out.shown, samples, strict=True)]
    right = [exact_match(sample.text, row.answer or "") for row, sample in zip(golds, samples, strict=True)]
    scored = replace(held_out, scored=tuple(golds))
    evaluation, _ = evaluate_model(other_model, tokenizer, chat_format, scored, settings, seed=0)
    assert evaluation.exact_match is not None
    assert evaluation.exact_match.score == sum(right) / 4 > 0


def test_a_prompt_that_does_not_fit_counts_as_wrong(
    other_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat,
    held_out: HeldOut,
    settings: EvaluationSettings,
) -> None:
    row = held_out.scored[0]
    long = replace(row, messages=(Message("user", "x" * 200), Message("assistant", "4")), answer="4")
    one_long = replace(held_out, scored=(long, *held_out.scored[1:]), shown=(long,))
    evaluation, samples = evaluate_model(other_model, tokenizer, chat_format, one_long, settings, seed=0)
    assert samples[0].text == ""
    assert evaluation.exact_match is not None
    assert evaluation.exact_match.n == 6


def test_without_rows_nothing_is_generated(
    other_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat,
    held_out: HeldOut,
    settings: EvaluationSettings,
) -> None:
    empty = replace(held_out, scored=(), shown=())
    evaluation, samples = evaluate_model(other_model, tokenizer, chat_format, empty, settings, seed=0)
    assert evaluation.to_json()["exact_match"] is None
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    assert samples == []


def test_a_teachers_nll_comes_through_its_protocol(
    model: LlamaForCausalLM,
    other_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat,
    held_out: HeldOut,
    settings: EvaluationSettings,
    vocab_size: int,
) -> None:
    class Uniform:
        """A teacher that knows nothing: V* equal logits, so every NLL is ln V*."""

        num_parameters = 0

        def targets(self, batch: Batch, layers: Sequence[int] = ()) -> DenseTargets:
            parts = split_model(other_model)
            return DenseTargets(Projection(parts.hidden(batch) * 0, parts.head.weight[:vocab_size]))

    evaluation, _ = evaluate_model(model, tokenizer, chat_format, held_out, settings, seed=0, teacher=Uniform())
    assert evaluation.likelihood.perplexity == pytest.approx(vocab_size, rel=1e-5)


def test_side_by_side() -> None:
    before, after, teacher = ([Sample("math", "2 + 2 =", "4", text)] for text in ("5", "4", "four"))
    joined = {
        "domain": "math",
        "prompt": "2 + 2 =",
        "gold": "4",
        "teacher": "four",
        "student_before": "5",
        "student_after": "4",
    }
    assert side_by_side(teacher, before, after) == [joined]
    assert side_by_side(None, before, after) == [{**joined, "teacher": None}]
