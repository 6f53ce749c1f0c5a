"""NLL per domain against a document-by-document float64 reference; kinds of token and ranks kept apart."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from worked_documents import END, WORKED, documents_of, worked_report

from stillhouse.data.chat import ChatFormat
from stillhouse.data.prepare import Prepared
from stillhouse.errors import DataError, ModelError
from stillhouse.evaluation.nll import NLLReport, evaluate_nll, measure_nll
from stillhouse.models.head import split_model


def test_worked_numbers() -> None:
    report = worked_report([4, 2, 3])
    a, b = report.domains["a"], report.domains["b"]
    # a: content 2, 3, 4 -> (.2 + .3 + .4) / 3 = .3; end of turn twice .9. b: content 8 -> .8.
    assert (a.content_tokens, a.end_of_turn_tokens, a.documents) == (3, 2, 2)
    assert (b.content_tokens, b.end_of_turn_tokens, b.documents) == (1, 0, 1)
    assert a.nll == pytest.approx(0.3)
    assert a.end_of_turn_nll == pytest.approx(0.9)
    assert b.nll == pytest.approx(0.8)
    assert b.end_of_turn_nll is None
    # .9 nats / ln 2 over 4 + 2 bytes; .8 over 3.
    assert a.bits_per_byte == pytest.approx(0.9 / math.log(2) / 6)
    assert b.bits_per_byte == pytest.approx(0.8 / math.log(2) / 3)
    assert b.perplexity == pytest.approx(math.exp(0.8))
    # Macro: (.3 + .8) / 2, not the (.9 + .8) / 4 of tokens; end of turn over the one domain that has it.
    assert report.nll == pytest.approx(0.55)
    assert report.perplexity == pytest.approx(math.exp(0.55))
    assert report.end_of_turn_nll == pytest.approx(0.9)
    assert list(report.domains) == ["a", "b"]


def test_without_bytes_there_are_no_bits_per_byte() -> None:
    assert worked_report().domains["a"].bits_per_byte is None


def test_a_domain_with_end_of_turn_only_is_left_out() -> None:
    report = worked_report(documents=documents_of((0, [1, 2], [0, 1]), (2, [1, END], [0, 1])))
    assert list(report.domains) == ["a"]
    assert report.end_of_turn_nll is None


def test_no_content_is_an_error() -> None:
    with pytest.raises(DataError, match="no content tokens"):
        worked_report(documents=documents_of((0, [1, END], [0, 1])))


def test_not_finite_is_an_error_that_names_the_domain() -> None:
    with pytest.raises(ModelError, match="domain 'b' is not finite"):
        measure_nll(
            lambda batch: torch.where(batch.labels == 8, torch.nan, 1.0),
            WORKED,
            end_of_turn_ids=frozenset({END}),
            byte_counts=None,
            micro_batch_tokens=8,
            device="cpu",
        )


def test_perplexity_that_no_float_holds_is_none() -> None:
    report = measure_nll(
        lambda batch: torch.full_like(batch.labels, 800.0, dtype=torch.float32),
        WORKED,
        end_of_turn_ids=frozenset({END}),
        byte_counts=None,
        micro_batch_tokens=8,
        device="cpu",
    )
    assert report.nll == 800
    assert report.perplexity is None


def test_json_round_trip() -> None:
    report = worked_report([4, 2, 3])
    assert NLLReport.from_json(json.loads(json.dumps(asdict(report), allow_nan=False))) == report


def reference(model: LlamaForCausalLM, prepared: Prepared, ends: frozenset[int], vocab_size: int) -> dict[str, float]:
    """Mean content NLL per domain from whole float64 logits of one document at a time."""
    documents = prepared.documents
    model.eval()
    sums: dict[str, list[float]] = {}
    for document in documents:
        ids = torch.tensor(document.input_ids.astype(np.int64))
        with torch.no_grad():
            log_probs = model(input_ids=ids[None]).logits[0, :, :vocab_size].double().log_softmax(-1)
        for t in np.flatnonzero(document.loss_mask):
            if int(ids[t]) not in ends:
                sums.setdefault(documents.domains[document.domain], []).append(-float(log_probs[t - 1, ids[t]]))
    return {name: math.fsum(values) / len(values) for name, values in sums.items()}


@pytest.mark.parametrize(("micro_batch_tokens", "head_chunk"), [(64, 16), (256, 1000)])
def test_a_model_equals_the_reference(
    model: LlamaForCausalLM,
    prepared: Prepared,
    chat_format: ChatFormat,
    vocab_size: int,
    micro_batch_tokens: int,
    head_chunk: int,
) -> None:
    expected = reference(model, prepared, chat_format.end_of_turn_ids, vocab_size)
    model.train()  # attention dropout must not reach the evaluation
    report = evaluate_nll(
        split_model(model),
        prepared.documents,
        end_of_turn_ids=chat_format.end_of_turn_ids,
        byte_counts=None,
        micro_batch_tokens=micro_batch_tokens,
        head_chunk=head_chunk,
        device="cpu",
        vocab_size=vocab_size,
    )
    assert model.model.training
    assert {name: domain.nll for name, domain in report.domains.items()} == pytest.approx(expected, abs=1e-5)
    assert report.nll == pytest.approx(sum(expected.values()) / 3, abs=1e-5)
    assert sum(d.end_of_turn_tokens for d in report.domains.values()) == len(prepared.documents)
