"""Multiple choice by likelihood: which candidates compete, and sums against a plain computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.batch import Batch
from stillhouse.data.chat import ChatFormat
from stillhouse.data.checkable import Checks
from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError
from stillhouse.evaluation.metrics.choices import (
    ChoiceOutcome,
    ChoiceSet,
    Question,
    build_choices,
    choice_calibration,
    last_turn,
    question_of,
    score_choices,
)
from stillhouse.evaluation.scores import ChoiceScore, Part
from stillhouse.evaluation.token_nll import token_nll
from stillhouse.models.head import split_model
from stillhouse.rollout.mode import evaluating


def choice_row(question: str, choices: tuple[str, ...], answer: str, **more: str) -> Row:
    messages = (Message("user", question), Message("assistant", answer))
    return Row(messages, None, "d", answer, "1", "rows.jsonl:1", checks=Checks(choices=choices), **more)


LETTERS = choice_row("Which?\nA. red\nB. green\nC. blue\nAnswer with the letter.", ("red", "green", "blue"), "B")
LABELS = choice_row("Is it?\nAnswer Yes or No.", ("Yes", "No"), "No")


def build(
    rows: list[Row], tokenizer: PreTrainedTokenizerFast, template: str | None = None, max_seq_len: int = 96
) -> ChoiceSet:
    return build_choices(
        rows,
        tokenizer,
        template=template,
        max_seq_len=max_seq_len,
        end_of_turn_ids=frozenset({tokenizer.eos_token_id or 0}),
        tokenizer_hash="t",
    )


def test_letters_or_labels() -> None:
    assert question_of(LETTERS) == Question(LETTERS, ("A", "B", "C"), 1)
    assert question_of(LABELS) == Question(LABELS, ("Yes", "No"), 1)
    # Choices that are letters themselves, in another order: the question decides which is meant.
    listed = choice_row("Which?\nA. B\nB. A\nAnswer with the letter.", ("B", "A"), "B")
    assert question_of(listed) == Question(listed, ("A", "B"), 1)
    plain = choice_row("Say B or A.", ("B", "A"), "B")
    assert question_of(plain) == Question(plain, ("B", "A"), 0)


@pytest.mark.parametrize(
    ("choices", "answer"), [(("Yes", "No"), "Maybe"), (("x", "y"), "C"), (("same", "same"), "same")]
)
def test_an_answer_that_is_none_of_the_choices(choices: tuple[str, ...], answer: str) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: the answer .* must be one of the choices"):
        question_of(choice_row("?", choices, answer))


def test_candidates_stand_where_the_answer_stands(tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat) -> None:
    choices = build([LETTERS, LABELS], tokenizer)
    assert [len(q.candidates) for q in choices.questions] == [3, 2]
    assert choices.documents.rows.tolist() == [0, 0, 0, 1, 1]
    prompt = chat_format.render_prompt((LETTERS.messages or ())[:1])
    for document, letter in zip(choices.documents, "ABC", strict=False):
        assert document.input_ids[: len(prompt)].tolist() == prompt
        assert tokenizer.decode(document.input_ids[document.loss_mask]) == f"{letter}<|im_end|>"


def test_only_the_last_turn_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    earlier = (Message("user", "Hello"), Message("assistant", "Hi there"))
    row = replace(LABELS, messages=(*earlier, *(LABELS.messages or ())))
    (first, _) = build([row], tokenizer).documents
    assert tokenizer.decode(first.input_ids[first.loss_mask]) == "Yes<|im_end|>"
    assert last_turn(np.array([0, 1, 1, 0, 1, 0], bool)).tolist() == [False] * 4 + [True, False]
    assert last_turn(np.array([1, 1], bool)).tolist() == [True, True]


def test_a_prompt_without_a_template_is_continued(make_tokenizer: object) -> None:
    tokenizer = make_tokenizer(None)  # type: ignore[operator]
    row = replace(choice_row("Sky:", (" blue", " red"), " red"), prompt="Sky:", completion=" red")
    documents = list(build([row], tokenizer).documents)
    texts = [tokenizer.decode(d.input_ids[d.loss_mask]) for d in documents]
    assert texts == [" blue<|im_end|>", " red<|im_end|>"]
    assert all(tokenizer.decode(d.input_ids).removeprefix("<|im_start|>").startswith("Sky:") for d in documents)


def test_a_question_that_does_not_fit_is_skipped_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    long = choice_row("Is it?", ("Yes", "No " * 100), "Yes")
    special = choice_row("Is it?", ("Yes", "<|im_end|>"), "Yes")
    choices = build([long, LABELS, special], tokenizer)
    assert [q.row for q in choices.questions] == [LABELS]
    assert (choices.skipped, len(choices.documents)) == (2, 2)


def test_sums_agree_with_the_models_own_logits(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    choices = build([LETTERS, LABELS], tokenizer)
    parts = split_model(model)

    def score(batch: Batch) -> torch.Tensor:
        return token_nll(parts.projection(parts.hidden(batch)), batch.labels, vocab_size=None, chunk=5)

    with evaluating(model):
        outcomes = score_choices(score, choices, micro_batch_tokens=128, device="cpu")
        expected = []
        for document in choices.documents:
            ids = torch.tensor(document.input_ids.astype("int64"))
            with torch.no_grad():
                log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            taken = [(t, float(log_probs[t - 1, ids[t]])) for t in range(1, len(ids)) if document.loss_mask[t]]
            expected.append((sum(v for _, v in taken), sum(v for t, v in taken if ids[t] != tokenizer.eos_token_id)))
    flat = [score for outcome in outcomes for score in outcome.scores]
    for found, (whole, content) in zip(flat, expected, strict=True):
        assert found.log_prob == pytest.approx(whole, rel=1e-4)
        assert found.log_prob_per_byte == pytest.approx(content / len(found.text.encode()), rel=1e-4)


def outcome(correct: int, *scores: tuple[float, float]) -> ChoiceOutcome:
    named = tuple(ChoiceScore(text, *score) for text, score in zip(("Yes", "No"), scores, strict=True))
    return ChoiceOutcome(Question(LABELS, ("Yes", "No"), correct), named)


def test_sum_and_per_byte_may_disagree() -> None:
    # Yes: -3 in all, -1 a byte; No: -2.5 in all, -1.25 a byte. By sum No, per byte Yes.
    parts = outcome(1, (-3.0, -1.0), (-2.5, -1.25)).parts
    assert parts == {"multiple_choice": Part(1.0), "multiple_choice_norm": Part(0.0)}
    # Of equal ones the first is taken.
    assert outcome(0, (-1.0, -1.0), (-1.0, -1.0)).parts["multiple_choice"].value == 1


def test_calibration_of_choices_by_hand() -> None:
    # ln 3 apart: softmax 3/4 and 1/4. Both answers say No at .75 and one is right: |1 - 1.5| / 2 = .25.
    near, far = -1.0, -1.0 - float(np.log(3))
    found = choice_calibration([outcome(1, (far, 0), (near, 0)), outcome(0, (far, 0), (near, 0))])
    assert found.score == pytest.approx(0.25)
    assert found.n == 2
