"""Expected calibration error: bins by hand, tokens of a model, and the interval."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from stillhouse.data.prepare import Prepared
from stillhouse.evaluation.metrics.calibration import (
    NUM_BINS,
    TokenCalibration,
    bin_of,
    bin_sums,
    calibration_score,
    token_confidence,
)
from stillhouse.evaluation.nll import measure_nll
from stillhouse.evaluation.token_nll import token_nll
from stillhouse.models.head import split_model
from stillhouse.rollout.mode import evaluating


def test_bins_are_fifteen_of_equal_width() -> None:
    # 1/15 = .0667: .06 is in bin 0, .07 in bin 1; .5 is 7.5 fifteenths; 1 belongs to the last.
    confidence = torch.tensor([0.0, 0.06, 0.07, 0.5, 0.94, 1.0], dtype=torch.float64)
    assert bin_of(confidence).tolist() == [0, 0, 1, 7, 14, 14]


def test_error_by_hand() -> None:
    # Bin 13 holds .9, .9 (right, wrong): |1 - 1.8| = .8. Bin 7 holds .5 (right): |1 - .5| = .5. Of three: 1.3 / 3.
    confidence = torch.tensor([0.9, 0.9, 0.5], dtype=torch.float64)
    correct = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    score = calibration_score(bin_sums(torch.tensor([0, 1, 2]), confidence, correct, 3))
    assert score.score == pytest.approx(1.3 / 3)
    assert score.n == 3
    # Drawing only the .5 gives .5, only the wrong .9 gives .9, only the right .9 gives .1.
    assert score.interval[0] == pytest.approx(0.1)
    assert score.interval[1] == pytest.approx(0.9)


def test_perfect_calibration_is_zero_and_groups_without_tokens_do_not_count() -> None:
    confidence = torch.full((4,), 0.5, dtype=torch.float64)
    correct = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    score = calibration_score(bin_sums(torch.tensor([0, 0, 2, 2]), confidence, correct, 4))
    assert (score.score, score.n, score.interval) == (0.0, 2, (0.0, 0.0))


def test_token_confidence_agrees_with_the_whole_distribution(model: LlamaForCausalLM, prepared: Prepared) -> None:
    documents = prepared.documents
    ids = torch.tensor(documents[0].input_ids[None].astype("int64"))
    parts = split_model(model)
    with evaluating(model), torch.no_grad():
        projection = parts.projection(parts.backbone(input_ids=ids).last_hidden_state[0, :-1])
        logits = model(input_ids=ids).logits[0, :-1]
    labels = ids[0, 1:]
    for vocab_size in (None, len(logits[0]) - 4):
        real = logits if vocab_size is None else logits[:, :vocab_size]
        nll, confidence, correct = token_confidence(projection, labels, vocab_size=vocab_size, chunk=3)
        probs = real.softmax(-1)
        assert torch.allclose(confidence, probs.max(-1).values, atol=1e-5)
        assert torch.equal(correct, (probs.argmax(-1) == labels).float())
        assert torch.equal(nll, token_nll(projection, labels, vocab_size=vocab_size, chunk=3))


def test_calibration_rides_on_an_nll_pass(model: LlamaForCausalLM, prepared: Prepared) -> None:
    """The same NLL as without it, only content tokens, and a repeated batch changes nothing."""
    parts, documents = split_model(model), prepared.documents
    ends = frozenset({int(documents[0].input_ids[documents[0].loss_mask][-1])})
    tally = TokenCalibration(
        lambda batch: parts.projection(parts.hidden(batch)),
        num_documents=len(documents),
        end_of_turn_ids=ends,
        vocab_size=None,
        head_chunk=16,
    )

    def measure(score: object) -> object:
        with evaluating(model):
            return measure_nll(
                score,  # type: ignore[arg-type]
                documents,
                end_of_turn_ids=ends,
                byte_counts=None,
                micro_batch_tokens=96,
                device="cpu",
            )

    plain = measure(
        lambda batch: token_nll(parts.projection(parts.hidden(batch)), batch.labels, vocab_size=None, chunk=16)
    )
    report = measure(tally)
    assert report == plain
    first = tally.score("cpu", None)
    assert first.n == len(documents)
    measure(tally)
    assert tally.score("cpu", None) == first
    # By hand: every content token of every document.
    confidences, rights = [], []
    for document in documents:
        ids = torch.tensor(document.input_ids.astype("int64"))
        with evaluating(model), torch.no_grad():
            probs = model(input_ids=ids[None]).logits[0].softmax(-1)
        for t in range(1, len(ids)):
            if document.loss_mask[t] and int(ids[t]) not in ends:
                confidences.append(float(probs[t - 1].max()))
                rights.append(float(probs[t - 1].argmax() == ids[t]))
    whole = bin_sums(
        torch.zeros(len(rights), dtype=torch.long),
        torch.tensor(confidences, dtype=torch.float64),
        torch.tensor(rights, dtype=torch.float64),
        1,
    )
    assert first.score == pytest.approx(calibration_score(whole, draws=1).score, abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_the_error_is_between_zero_and_one(pairs: list[tuple[float, bool]]) -> None:
    confidence = torch.tensor([c for c, _ in pairs], dtype=torch.float64)
    correct = torch.tensor([float(r) for _, r in pairs], dtype=torch.float64)
    assert 0 <= int(bin_of(confidence).min()) <= int(bin_of(confidence).max()) < NUM_BINS
    score = calibration_score(bin_sums(torch.zeros(len(pairs), dtype=torch.long), confidence, correct, 1), draws=5)
    assert -1e-12 <= score.score <= 1 + 1e-12
    # No binning can make the error larger than the mean distance of each pair.
    assert score.score <= float((correct - confidence).abs().mean()) + 1e-9
