"""Agreement with worked numbers, and of models with themselves and with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from transformers import LlamaForCausalLM

from stillhouse.data.batch import Batch
from stillhouse.data.chat import ChatFormat
from stillhouse.data.prepare import Prepared
from stillhouse.errors import DataError
from stillhouse.evaluation.agreement import AgreementReport, evaluate_agreement, token_agreement
from stillhouse.models.head import CausalParts, split_model
from stillhouse.teachers.protocol import DenseTargets, Projection


@dataclass
class PlainTeacher:
    """The protocol over the parts of a model, its head cut to the real ids."""

    parts: CausalParts
    vocab_size: int
    num_parameters: int = 0

    def targets(self, batch: Batch, layers: Sequence[int] = ()) -> DenseTargets:
        return DenseTargets(Projection(self.parts.hidden(batch), self.parts.head.weight[: self.vocab_size]))


def identity(logits: list[list[float]]) -> Projection:
    hidden = torch.tensor(logits, dtype=torch.float32)
    return Projection(hidden, torch.eye(hidden.shape[1]))


def test_worked_numbers() -> None:
    # methods.md, T0: KL(softmax [2,1,0,-1] || softmax [1,1,0,0]) = .178075; both put id 0 first (argmax takes the
    # first of equals). The second row: p = softmax [0,3], q = softmax [3,0] -> KL = (p1 - p0) * 3 = .905148 * 3.
    kl, same = token_agreement(
        identity([[1, 1, 0, 0], [3, 0, -99, -99]]), identity([[2, 1, 0, -1], [0, 3, -99, -99]]), chunk=1
    )
    assert kl.tolist() == pytest.approx([0.178075, 2.715445], abs=1e-5)
    assert same.tolist() == [1, 0]


def test_padding_rows_of_the_student_are_cut() -> None:
    teacher = Projection(torch.tensor([[1.0, 0.0, 0.0]]), torch.eye(3)[:2])
    student = identity([[1.0, 0.0, 50.0]])
    kl, same = token_agreement(student, teacher, chunk=8)
    assert kl.item() == pytest.approx(0, abs=1e-6)
    assert same.item() == 1


def test_an_id_masked_in_both_adds_nothing() -> None:
    masked = Projection(torch.tensor([[1.0, 2.0]]), torch.eye(2), bias=torch.tensor([0.0, -torch.inf]))
    kl, _ = token_agreement(masked, masked, chunk=8)
    assert kl.item() == 0


def agreement(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, prepared: Prepared, ends: frozenset[int], vocab_size: int
) -> AgreementReport:
    return evaluate_agreement(
        split_model(student),
        PlainTeacher(split_model(teacher), vocab_size),
        prepared.documents,
        end_of_turn_ids=ends,
        micro_batch_tokens=128,
        head_chunk=16,
        device="cpu",
    )


def test_a_model_agrees_with_itself(
    other_model: LlamaForCausalLM, prepared: Prepared, chat_format: ChatFormat, vocab_size: int
) -> None:
    report = agreement(other_model, other_model, prepared, chat_format.end_of_turn_ids, vocab_size)
    assert report.forward_kl == pytest.approx(0, abs=1e-6)
    assert report.top1 == 1
    assert set(report.domains) == {"math", "choice", "talk"}
    targets = sum(d.content_tokens for d in report.domains.values())
    assert targets == prepared.documents.num_targets.sum() - len(prepared.documents)


def test_two_models_equal_torch_kl(
    model: LlamaForCausalLM,
    other_model: LlamaForCausalLM,
    prepared: Prepared,
    chat_format: ChatFormat,
    vocab_size: int,
) -> None:
    model.eval()
    report = agreement(model, other_model, prepared, chat_format.end_of_turn_ids, vocab_size)
    ends = torch.tensor(sorted(chat_format.end_of_turn_ids))
    by_domain: dict[str, list[torch.Tensor]] = {}
    for document in prepared.documents:
        ids = torch.tensor(document.input_ids, dtype=torch.long)
        mask = torch.tensor(document.loss_mask) & ~torch.isin(ids, ends)
        with torch.no_grad():
            q, p = (
                m(input_ids=ids[None]).logits[0, :-1][mask[1:], :vocab_size].double().log_softmax(-1)
                for m in (model, other_model)
            )
        kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        by_domain.setdefault(prepared.documents.domains[document.domain], []).append(kl)
    expected = {name: torch.cat(kls).mean().item() for name, kls in by_domain.items()}
    assert {name: d.forward_kl for name, d in report.domains.items()} == pytest.approx(expected, abs=1e-5)
    assert report.forward_kl == pytest.approx(sum(expected.values()) / 3, abs=1e-5)


def test_no_content_is_an_error(other_model: LlamaForCausalLM, prepared: Prepared, vocab_size: int) -> None:
    everything = frozenset(range(vocab_size))
    with pytest.raises(DataError, match="no content tokens"):
        agreement(other_model, other_model, prepared, everything, vocab_size)
